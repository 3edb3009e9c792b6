"""The operations of a campaign: six steps each, with what may come between."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

from nexusrpc import OperationError, OperationErrorState
from nexusrpc.handler import service_handler
from pydantic import BaseModel

from handlers import DurableContext, durable_operation
from tests.chaos.witness import now_ms, testify

SERVICE = "campaign.v1"
SIGNAL = "go"

# More than what waits in memory, with the settings of a campaign, and less.
_LEAVES_MEMORY = timedelta(seconds=1.5)
_STAYS_IN_MEMORY = timedelta(seconds=0.4)
_LONG = timedelta(hours=1)


class Order(BaseModel):
    """What to do: a step takes so long, and some operations tell their starts apart by number."""

    number: int
    step_seconds: float = 0.005


@dataclass
class _Step:
    """One step of an operation; what it returns names this very run of it."""

    token: str
    label: str
    seconds: float
    asked_at: int

    async def run(self) -> str:
        nonce = testify(self.token, self.label, self.asked_at)
        await asyncio.sleep(self.seconds)
        return nonce

    def run_on_thread(self) -> str:
        nonce = testify(self.token, self.label, self.asked_at)
        time.sleep(self.seconds)
        return nonce


def _step(ctx: DurableContext, order: Order, label: str) -> Awaitable[str]:
    step = _Step(ctx.operation_token, label, order.step_seconds, now_ms())
    return ctx.step(step.run, name=label)


def _step_on_thread(ctx: DurableContext, order: Order, label: str) -> Awaitable[str]:
    step = _Step(ctx.operation_token, label, order.step_seconds, now_ms())
    return ctx.step(step.run_on_thread, name=label)


@service_handler(name=SERVICE)
class CampaignHandler:
    """Each operation returns what its steps returned, in order."""

    @durable_operation
    async def plain(self, ctx: DurableContext, order: Order) -> list[str]:
        done = [await _step(ctx, order, "s1"), await _step_on_thread(ctx, order, "s2")]
        return done + [await _step(ctx, order, f"s{n}") for n in range(3, 7)]

    @durable_operation
    async def sleeping(self, ctx: DurableContext, order: Order) -> list[str]:
        done = [await _step(ctx, order, f"s{n}") for n in range(1, 3)]
        await ctx.sleep(_STAYS_IN_MEMORY)
        done += [await _step(ctx, order, f"s{n}") for n in range(3, 5)]
        await ctx.sleep(_LEAVES_MEMORY)
        return done + [await _step(ctx, order, f"s{n}") for n in range(5, 7)]

    @durable_operation
    async def signalled(self, ctx: DurableContext, order: Order) -> list[str]:
        done = [await _step(ctx, order, f"s{n}") for n in range(1, 4)]
        said = await ctx.wait_for(SIGNAL, int)
        assert said == order.number
        return done + [await _step(ctx, order, f"s{n}") for n in range(4, 7)]

    @durable_operation
    async def gathering(self, ctx: DurableContext, order: Order) -> list[str]:
        async def branch(labels: list[str]) -> list[str]:
            done = [await _step(ctx, order, labels[0])]
            await ctx.sleep(_STAYS_IN_MEMORY)
            return [*done, await _step(ctx, order, labels[1])]

        left, right = await ctx.gather(branch(["s1", "s2"]), branch(["s3", "s4"]))
        return [*left, *right, *[await _step(ctx, order, f"s{n}") for n in range(5, 7)]]

    @durable_operation
    async def failing(self, ctx: DurableContext, order: Order) -> list[str]:
        for n in range(1, 7):
            await _step(ctx, order, f"s{n}")
        raise OperationError(f"told to fail: {order.number}", state=OperationErrorState.FAILED)

    @durable_operation
    async def canceled(self, ctx: DurableContext, order: Order) -> list[str]:
        try:
            for n in range(1, 4):
                await _step(ctx, order, f"s{n}")
            await ctx.sleep(_LONG)
        finally:
            for n in range(4, 7):
                await _step(ctx, order, f"s{n}")
        return []

    @durable_operation
    async def endless(self, ctx: DurableContext, order: Order) -> None:
        for n in range(1, 100_000):
            await _step(ctx, order, f"s{n}")


services = [CampaignHandler()]
