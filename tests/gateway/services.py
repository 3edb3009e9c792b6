"""What the gateways under test serve; the file form of a target, so that any folder will do."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import nexusrpc
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    operation_handler,
    service_handler,
    sync_operation,
)

from handlers import DurableContext, durable_operation

TARGET = f"{Path(__file__).resolve()}:services"

logger = logging.getLogger(__name__)


@nexusrpc.service(name="lab")
class Lab:
    echo: nexusrpc.Operation[Any, Any]
    end: nexusrpc.Operation[str, Any]
    nap: nexusrpc.Operation[float, str]
    two_steps: nexusrpc.Operation[float, str]
    steps_around_a_word: nexusrpc.Operation[None, str]
    elsewhere: nexusrpc.Operation[str, str]


class Elsewhere(OperationHandler[str, str]):
    """An operation that somebody completes from outside, by the token that was its input."""

    async def start(self, ctx: StartOperationContext, input: str) -> StartOperationResultAsync:
        return StartOperationResultAsync(input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        pass


@service_handler(service=Lab)
class LabHandler:
    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> Any:
        return value

    @durable_operation
    async def end(self, ctx: DurableContext, how: str) -> Any:
        if how == "null":
            return None
        if how == "bytes":
            return b"\x00\xff"
        raise nexusrpc.OperationError("no [/luck]", state=nexusrpc.OperationErrorState(how))

    @durable_operation
    async def nap(self, ctx: DurableContext, seconds: float) -> str:
        ctx.progress(0.5, "half [/asleep]")
        await ctx.sleep(timedelta(seconds=seconds))
        return "rested"

    @durable_operation
    async def two_steps(self, ctx: DurableContext, seconds: float) -> str:
        await ctx.step(first)
        await ctx.sleep(timedelta(seconds=seconds))
        await ctx.step(second)
        return "done"

    @durable_operation
    async def steps_around_a_word(self, ctx: DurableContext, nothing: None) -> str:
        await ctx.step(first)
        await ctx.wait_for("word")
        await ctx.step(second)
        return "done"

    @operation_handler
    def elsewhere(self) -> OperationHandler[str, str]:
        return Elsewhere()


async def first() -> None:
    logger.info("the first step")
    await asyncio.sleep(0)


async def second() -> None:
    logger.info("the second step")
    await asyncio.sleep(0)


services = [LabHandler()]
