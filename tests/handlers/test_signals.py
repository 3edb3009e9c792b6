"""Signals: before and after the wait for them, twice, too late, and across restarts."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from handlers import DurableContext, InvalidSignal, StepArgumentsInvalid
from handlers.store.signals import Received
from handlers.testing.clock import FakeClock
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


class Approval(BaseModel):
    by: str


async def parked(world: World, token: str) -> None:
    """Wait until the handler waits for something from outside."""

    def waits() -> bool:
        live = world.engine._runner._live.get(token)
        return live is not None and live.execution is not None and live.execution.waiting

    await until(waits)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("before", [0, 1, 3])
async def test_each_wait_gets_the_next_signal_of_its_name(
    open_world: OpenWorld, before: int, restart: bool
) -> None:
    gate = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> list[Any]:
        await ctx.step(gate.wait, name="gate")
        first = await ctx.wait_for("approval", Approval)
        second = await ctx.wait_for("approval")
        return [first.by, second, await ctx.wait_for("other", int)]

    world = await open_world(work(body))
    token = await world.start("run")
    signals = [("approval", {"by": "a"}), ("other", 5), ("approval", {"by": "b"})]
    for name, payload in signals[:before]:
        assert await world.signal(token, name, payload) is Received.NEW
    if restart:
        await world.reopen()
    gate.set()
    for name, payload in signals[before:]:
        await world.waits_at(token, "gate#1")
        assert await world.signal(token, name, payload) is Received.NEW
        if restart:
            await world.reopen()
    assert await world.result(token) == ["a", {"by": "b"}, 5]
    kinds = [(entry.kind, entry.ref) for entry in await world.journal(token)]
    assert sorted(kinds) == [("signal", "1"), ("signal", "2"), ("signal", "3"), ("step", None)]


async def test_a_signal_counts_once(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> list[Any]:
        return [await ctx.wait_for("word"), await ctx.wait_for("word")]

    world = await open_world(work(body))
    token = await world.start("run")
    answers = [await world.signal(token, "word", n, str(n // 2)) for n in range(4)]
    assert answers == [Received.NEW, Received.DUPLICATE] * 2
    assert await world.result(token) == [0, 2]
    assert await world.signal(token, "word", 5) is Received.ENDED
    assert await world.signal("nobody", "word", 5) is Received.UNKNOWN


async def test_branches_wait_for_their_own(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> list[Any]:
        return await ctx.gather(
            ctx.wait_for("a"), ctx.wait_for("b"), ctx.wait_for("a"), ctx.wait_for("b")
        )

    world = await open_world(work(body))
    token = await world.start("run")
    for payload in (1, 2):
        await world.signal(token, "b", payload)
        await world.signal(token, "a", payload)
        await world.reopen()
    assert sorted(await world.result(token)) == [1, 1, 2, 2]


@pytest.mark.parametrize("restart", [False, True])
async def test_a_wait_times_out_once_for_all(open_world: OpenWorld, restart: bool) -> None:
    clock = FakeClock()
    gate = asyncio.Event()
    seen: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            seen.append(await ctx.wait_for("word", str, timeout=HOUR))
        except TimeoutError:
            seen.append("timeout")
        await ctx.step(gate.wait, name="gate")
        return seen[-1]

    world = await open_world(work(body), clock=clock)
    token = await world.start("run")
    await parked(world, token)
    wake_at = (await world.journal(token))[0].wake_at
    clock.jump(clock.now_ms() + 1_800_000)
    if restart:
        await world.reopen()
        await parked(world, token)
    clock.jump(clock.now_ms() + 1_800_000)
    await until(lambda: seen)
    await world.signal(token, "word", "late")
    await world.reopen()
    gate.set()
    assert await world.result(token) == "timeout"
    assert set(seen) == {"timeout"}
    timer, outcome = (await world.journal(token))[:2]
    assert (timer.key, timer.wake_at) == ("word#1.timeout", wake_at)
    assert (outcome.key, outcome.output, outcome.ref) == ("word#1", None, None)


async def test_a_signal_in_time_is_the_outcome_on_every_run(open_world: OpenWorld) -> None:
    clock = FakeClock()
    gate = asyncio.Event()
    seen: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        seen.append(await ctx.wait_for("word", str, timeout=HOUR))
        await ctx.step(gate.wait, name="gate")
        return seen[-1]

    world = await open_world(work(body), clock=clock)
    token = await world.start("run")
    await parked(world, token)
    await world.signal(token, "word", "in time")
    await until(lambda: seen)
    clock.jump(clock.now_ms() + 7_200_000)
    await world.reopen()
    gate.set()
    assert await world.result(token) == "in time"


async def test_a_payload_of_another_type_is_consumed_and_told(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    errors: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        while True:
            try:
                approval = await ctx.wait_for("approval", Approval)
            except InvalidSignal as error:
                errors.append(error.name)
            else:
                await ctx.step(gate.wait, name="gate")
                return approval.by

    world = await open_world(work(body))
    token = await world.start("run")
    await world.signal(token, "approval", "no approval")
    await world.signal(token, "approval", {"by": "me"})
    await world.waits_at(token, "approval#2")
    await world.reopen()
    gate.set()
    assert await world.result(token) == "me"
    assert errors == ["approval", "approval"]


async def test_a_signal_that_the_handler_did_not_see_is_not_lost(open_world: OpenWorld) -> None:
    seen: list[str] = []
    gate = asyncio.Event()
    waiting: list[asyncio.Task[str]] = []

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        waiting[:] = [asyncio.ensure_future(ctx.wait_for("word", str))]
        try:
            seen.append(await waiting[0])
        except asyncio.CancelledError:
            seen.append("cancelled")
        seen.append(await ctx.wait_for("word", str))
        await ctx.step(gate.wait, name="gate")
        return seen[-2:]

    world = await open_world(work(body))

    def cancel_while_it_is_recorded(write: Any) -> None:
        if getattr(getattr(write, "entry", None), "key", "") == "1/word#1":
            # The write is queued in this turn of the loop and committed at the end of it.
            asyncio.get_running_loop().call_soon(waiting[0].cancel)

    world.database.refuses = cancel_while_it_is_recorded
    token = await world.start("run")
    await world.signal(token, "word", "only one")
    await until(lambda: len(seen) == 2)
    assert seen == ["cancelled", "only one"]
    first = waiting[0]
    await world.reopen()
    await until(lambda: waiting[0] is not first)
    waiting[0].cancel()  # as the handler's code does on every run
    gate.set()
    assert await world.result(token) == ["cancelled", "only one"]


async def test_a_cancel_interrupts_a_wait(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> Any:
        try:
            return await ctx.wait_for("word", timeout=HOUR)
        except asyncio.CancelledError:
            return await ctx.wait_for("last word")

    world = await open_world(work(body))
    token = await world.start("run")
    await parked(world, token)
    await world.cancel(token)
    await world.waits_at(token, "interrupt")
    await world.reopen()
    await world.signal(token, "word", "too late")
    await world.signal(token, "last word", "bye")
    assert await world.result(token) == "bye"


async def test_names_and_timeouts_are_checked(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> list[str]:
        messages = []
        for call in (
            lambda: ctx.wait_for("a#1"),
            lambda: ctx.wait_for(""),
            lambda: ctx.wait_for("nexus.call"),
            lambda: ctx.wait_for("a", timeout=5),  # type: ignore[call-overload]
            lambda: ctx.patched("a/b"),
        ):
            try:
                await call()
            except StepArgumentsInvalid as error:
                messages.append(str(error))
        return messages

    world = await open_world(work(body))
    messages = await world.result(await world.start("run"))
    for message, part in zip(
        messages,
        ["no '/' and no '#'", "1 to 200 characters", "reserved", "a timedelta", "without '#'"],
        strict=True,
    ):
        assert part in message


async def test_messages_of_the_gateway_itself_are_told_apart_by_id(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> list[Any]:
        execution = ctx._execution

        async def one(dedupe_id: str) -> Any:
            entry = await execution.wait_for_message("call", "nexus.test", dedupe_id=dedupe_id)
            return (entry.output or b"").decode()

        timed_out = await execution.wait_for_message(
            "call", "nexus.test", dedupe_id="never", timeout=timedelta(0)
        )
        return [timed_out.output, *await ctx.gather(one("x"), one("y"))]

    world = await open_world(work(body))
    token = await world.start("run")
    await world.signal(token, "nexus.test", "of y", "y")
    await world.signal(token, "nexus.test", "of x", "x")
    assert await world.result(token) == [None, '"of x"', '"of y"']


async def test_what_is_missed_is_found_when_notifications_were_lost(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> Any:
        return await ctx.wait_for("word")

    world = await open_world(work(body))
    token = await world.start("run")
    await parked(world, token)
    runner = world.engine._runner
    runner.wake("nobody")
    runner.wake_all()
    runner.wake(token)
    runner.wake(token)
    await world.signal(token, "word", 1)
    assert await world.result(token) == 1

    async def is_kept() -> bool:
        return len(await world.journal(token)) == 1

    await until_found(is_kept)
