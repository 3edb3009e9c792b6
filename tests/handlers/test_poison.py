"""An operation that kills its process again and again is paused; the others go on."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.records import State
from tests.handlers.test_steps import work
from tests.handlers.world import World, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


class Deadly:
    """A handler whose operation `culprit` means the end of the process."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.died = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.kills = True

    async def touch(self, name: str) -> None:
        self.ran[name] += 1
        if name == "culprit" and self.kills:
            self.died.set()
            await asyncio.Event().wait()
        await self.may_go_on.wait()

    async def run(self, ctx: DurableContext, input: str) -> str:
        await ctx.step(self.touch, input)
        return input


async def crashed(world: World, deadly: Deadly) -> None:
    """Let the process die of the operation, and begin the next."""
    await asyncio.wait_for(deadly.died.wait(), 10)
    await world.kill()
    deadly.died.clear()
    await world.open()


async def test_the_culprit_is_paused_and_the_bystanders_are_not(open_world: OpenWorld) -> None:
    deadly = Deadly()
    settings = EngineSettings(poison_after=5, probation_seconds=0.3)
    world = await open_world(work(deadly.run), settings=settings)
    # Around the culprit in the order of their tokens, which is that of suspicion among equals.
    before = [await world.start("run", f"before {n}") for n in range(3)]
    culprit = await world.start("run", "culprit")
    after = [await world.start("run", f"after {n}") for n in range(3)]
    for _ in range(5):
        await crashed(world, deadly)

    async def is_paused() -> bool:
        return (await world.stored(culprit)).state is State.PAUSED

    await until_found(is_paused)
    stored = await world.stored(culprit)
    assert stored.losses == 5
    assert "5 times in a row" in (stored.pause_reason or "")
    assert "operations resume" in (stored.pause_reason or "")
    assert deadly.ran["culprit"] == 5
    await until(lambda: world.engine.stats.poisoned == 1)
    deadly.may_go_on.set()
    for token in before + after:
        assert (await world.ended(token)).state is State.SUCCEEDED

    deadly.kills = False
    await world.engine.resume(culprit)
    assert await world.result(culprit) == "culprit"
    assert (await world.stored(culprit)).losses == 0


async def test_progress_begins_the_count_anew(open_world: OpenWorld) -> None:
    deadly = Deadly()
    runs = 0

    async def step(number: int) -> int:
        return number

    async def body(ctx: DurableContext, input: str) -> str:
        nonlocal runs
        runs += 1  # one step more than the run before
        for number in range(runs):
            await ctx.step(step, number)
        await ctx.step(deadly.touch, "culprit")
        return input

    world = await open_world(work(body), settings=EngineSettings(poison_after=3))
    token = await world.start("run", "it")
    for _ in range(8):
        await crashed(world, deadly)
        await until(lambda: world.engine.live == 1)
    assert (await world.stored(token)).losses == 1
    deadly.kills = False
    deadly.may_go_on.set()
    await world.reopen()
    assert await world.result(token) == "it"


async def test_an_orderly_end_is_no_loss(open_world: OpenWorld) -> None:
    deadly = Deadly()
    world = await open_world(work(deadly.run), settings=EngineSettings(poison_after=2))
    token = await world.start("run", "it")
    for n in range(1, 5):
        await until(lambda n=n: deadly.ran["it"] == n)  # type: ignore[misc]
        await world.close(0)
        await world.open()
    await until(lambda: deadly.ran["it"] == 5)
    assert (await world.stored(token)).losses == 0
    deadly.may_go_on.set()
    assert await world.result(token) == "it"


async def test_a_paused_culprit_keeps_its_deadline(open_world: OpenWorld) -> None:
    deadly = Deadly()
    world = await open_world(work(deadly.run), settings=EngineSettings(poison_after=2))
    token = await world.start("run", "culprit", operation_timeout=timedelta(seconds=2))
    await crashed(world, deadly)
    await crashed(world, deadly)
    assert await world.failure(token) == ("failed", "operation timed out")
    assert deadly.ran["culprit"] == 2
