"""Processes that are lost on purpose, and what is then done twice."""

from datetime import timedelta
from typing import Any

import pytest

from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.testing import Stuck, TestGateway
from tests.testing.orders import RUN, work

pytestmark = pytest.mark.anyio


class Effects:
    """Three steps, the first two at the same time, and how often each has run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def handler(self, ctx: DurableContext, input: Any) -> list[str]:
        names = [ctx.step(self.note, "a"), ctx.step(self.note, "b")]
        done = await ctx.gather(*names)
        await ctx.sleep(timedelta(hours=1))
        return [*done, await ctx.step(self.note, "c")]

    async def note(self, name: str) -> str:
        self.ran.append(name)
        return name


async def run_to_end(effects: Effects, **options: Any) -> list[str]:
    async with TestGateway([work(effects.handler)], **options) as gateway:
        run = await gateway.start(RUN, None)
        result: list[str] = await run.result()
        assert len({step.key for step in run.steps}) == len(run.steps) == 4
    return result


KEYS = ["1/note#1", "2/note#1", "sleep#1", "note#1"]


@pytest.mark.parametrize("key", KEYS)
async def test_what_is_recorded_is_never_done_again(key: str) -> None:
    effects = Effects()
    assert await run_to_end(effects, crash_after=key) == ["a", "b", "c"]
    # A branch that ran beside the one that crashed may have been recorded or not.
    assert len(effects.ran) <= 4
    assert effects.ran.count("c") == 1


@pytest.mark.parametrize(("key", "name"), [("1/note#1", "a"), ("2/note#1", "b"), ("note#1", "c")])
async def test_what_is_done_and_not_recorded_is_done_again(key: str, name: str) -> None:
    effects = Effects()
    assert await run_to_end(effects, crash_before=key) == ["a", "b", "c"]
    assert effects.ran.count(name) == 2


async def test_crashes_everywhere_are_survived() -> None:
    effects = Effects()
    settings = EngineSettings(poison_after=100)
    outcome = await run_to_end(effects, crash_before=KEYS, crash_after=KEYS, settings=settings)
    assert outcome == ["a", "b", "c"]


async def test_each_operation_crashes_by_itself() -> None:
    effects = Effects()
    async with TestGateway([work(effects.handler)], crash_after="note#1") as gateway:
        runs = [await gateway.start(RUN, None) for _ in range(3)]
        for run in runs:
            assert await run.result() == ["a", "b", "c"]
    assert sorted(effects.ran) == sorted("abc" * 3)


async def test_an_operation_can_crash_by_hand_while_it_waits() -> None:
    effects = Effects()
    async with TestGateway([work(effects.handler)]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until(step="sleep#1")
        await run.crash()
        assert await run.result() == ["a", "b", "c"]
    assert sorted(effects.ran) == ["a", "b", "c"]


async def test_a_whole_process_can_be_lost() -> None:
    effects = Effects()
    async with TestGateway([work(effects.handler)]) as gateway:
        runs = [await gateway.start(RUN, None) for _ in range(5)]
        await gateway.settle()
        await gateway.crash()
        await gateway.restart()
        for run in runs:
            assert await run.result() == ["a", "b", "c"]
    assert sorted(effects.ran) == sorted("abc" * 5)


async def test_a_crash_and_a_replay_at_every_entry_go_together() -> None:
    effects = Effects()
    outcome = await run_to_end(effects, crash_after="sleep#1", always_replay=True)
    assert outcome == ["a", "b", "c"]
    assert sorted(effects.ran) == ["a", "b", "c"]


async def test_a_paused_operation_is_told_apart() -> None:
    async def first(ctx: DurableContext, input: Any) -> None:
        await ctx.step(str, 1)
        await ctx.sleep(timedelta(days=1))

    async def second(ctx: DurableContext, input: Any) -> None:
        await ctx.step(str, 2)
        await ctx.sleep(timedelta(days=1))

    async with TestGateway([work(first)]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until(step="sleep#1")
        await gateway.restart([work(second)])
        with pytest.raises(Stuck, match=r"Work/run was paused: .*str#1"):
            await run.result()
        await gateway.restart([work(first)])
        await gateway.engine.resume(run.token)
        await run.result()
