"""Cancel and deadline, wherever they find a handler."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc import OperationError, OperationErrorState
from nexusrpc.handler import service_handler

from handlers import DurableContext, RetryPolicy, StepError, durable_operation
from handlers.engine import EngineSettings
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, callback, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
SLOW = RetryPolicy(initial_interval=HOUR, max_interval=HOUR)
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=1))
CANCELED = ("canceled", "operation canceled")
TIMED_OUT = ("failed", "operation timed out")
SOON = timedelta(milliseconds=60)


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise ValueError("not now")


async def quick() -> int:
    return 1


Waits = Callable[[DurableContext], Awaitable[Any]]
PLACES: dict[str, Waits] = {
    "sleep": lambda ctx: ctx.sleep(HOUR),
    "step": lambda ctx: ctx.step(forever),
    "backoff": lambda ctx: ctx.step(fails, retry=SLOW),
    "between": lambda ctx: forever(),
    "branches": lambda ctx: asyncio.gather(
        ctx.step(forever), ctx.sleep(HOUR), ctx.step(fails, retry=SLOW)
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_cancel_interrupts_and_cleanup_runs_once(
    open_world: OpenWorld, place: str, restart: bool
) -> None:
    ran: Counter[str] = Counter()
    interrupted = asyncio.Event()

    async def refund(amount: int) -> str:
        ran["refund"] += 1
        return "refunded"

    async def body(ctx: DurableContext, input: Any) -> None:
        paid = await ctx.step(quick)
        try:
            await PLACES[place](ctx)
        finally:
            assert ctx.cancellation_requested
            assert await ctx.step(refund, paid) == "refunded"
            if restart and not interrupted.is_set():
                interrupted.set()
                await ctx.sleep(HOUR)
            else:
                await ctx.sleep(timedelta(0))

    world = await open_world(work(body), settings=EngineSettings(cleanup_seconds=0.2))
    token = await world.start("run", callback=callback())
    await world.waits_at(token, "quick#1")
    await asyncio.sleep(0.01)
    await world.cancel(token)
    await world.cancel(token)
    if restart:
        await world.waits_at(token, "sleep#2" if place == "sleep" else "sleep#1")
        await world.reopen()
    assert await world.failure(token) == CANCELED
    await world.cancel(token)
    assert ran["refund"] == 1
    await until(lambda: world.sender.posts)
    assert world.sender.posts[0].get("nexus-operation-state") == ["canceled"]


async def test_a_cancel_while_down_lets_no_further_step_begin(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    def charge() -> None:
        ran["charge"] += 1

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(gate.wait, name="gate")
        await ctx.step(charge)

    world = await open_world(work(body))
    token = await world.start("run")
    await world.kill()
    gate.set()
    await world.open()
    await world.cancel(token)  # before the recovery has had a turn
    assert await world.failure(token) == CANCELED
    assert not ran


async def test_a_cancel_that_is_swallowed_changes_nothing(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.sleep(HOUR)
        except asyncio.CancelledError:
            await ctx.step(quick)
        return "made it"

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.cancel(token)
    assert await world.result(token) == "made it"


@pytest.mark.parametrize("fails_too", [False, True])
@pytest.mark.parametrize("on_thread", [False, True])
async def test_a_step_that_does_not_give_in_keeps_its_result_and_the_cancel(
    open_world: OpenWorld, on_thread: bool, fails_too: bool
) -> None:
    ran: Counter[str] = Counter()
    started = asyncio.Event()
    may_end = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stubborn_thread() -> int:
        ran["step"] += 1
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(10)
        if fails_too:
            raise ValueError("late")
        return 5

    async def stubborn() -> int:
        ran["step"] += 1
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            if fails_too:
                raise ValueError("late") from None
        return 5

    async def body(ctx: DurableContext, input: Any) -> None:
        function: Any = stubborn_thread if on_thread else stubborn
        await ctx.step(function, name="stubborn", retry=QUICK)
        await ctx.step(quick, name="not reached")

    world = await open_world(work(body))
    token = await world.start("run")
    await started.wait()
    await world.cancel(token)
    if on_thread:
        await world.interrupted(token)  # what fails before that is simply tried again
        may_end.set()
    assert await world.failure(token) == CANCELED
    journal = {entry.key: entry for entry in await world.journal(token)}
    assert set(journal) == {"interrupt", "stubborn#1"}
    assert (journal["stubborn#1"].output == b"5") is not fails_too
    assert ran["step"] == 1


async def test_a_cancel_that_the_database_refuses_is_tried_again(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    refusals = [OSError("disk full")]

    def refuse(write: Any) -> Exception | None:
        return refusals.pop() if type(write).__name__ == "AppendJournal" and refusals else None

    world.database.refuses = refuse
    await world.cancel(token)
    assert await world.failure(token) == CANCELED
    assert not refusals


async def test_a_deadline_ends_the_operation_after_its_cleanup(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()

    async def body(ctx: DurableContext, input: str) -> str:
        assert ctx.deadline is not None
        try:
            await ctx.sleep(HOUR)
        except asyncio.CancelledError:
            ran[str(await ctx.step(quick))] += 1
            if input == "raises":
                raise ValueError("x") from None
            if input == "fails":
                raise OperationError("x", state=OperationErrorState.CANCELED) from None
            if input == "step":
                await ctx.step(fails, retry=RetryPolicy(max_attempts=1))
            if input == "swallows":
                return "late"
            raise
        return ""

    world = await open_world(work(body))
    for how in ("", "raises", "fails", "step", "swallows"):
        token = await world.start("run", how, operation_timeout=SOON)
        assert await world.failure(token) == TIMED_OUT, how
    assert ran == {"1": 5}


async def test_a_deadline_passes_during_the_handlers_backoff(open_world: OpenWorld) -> None:
    runs: list[int] = []

    async def body(ctx: DurableContext, input: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("at first")
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    began = time.monotonic()
    token = await world.start("run", operation_timeout=SOON)
    assert await world.failure(token) == TIMED_OUT
    assert time.monotonic() - began < 0.9


async def test_a_cancel_while_a_failure_is_counted_is_not_lost(open_world: OpenWorld) -> None:
    runs: list[int] = []
    gate = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            await gate.wait()
            raise ValueError("at first")
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: runs)
    counted = asyncio.Event()

    def refuse(write: Any) -> Exception | None:
        if type(write).__name__ == "Update" and not counted.is_set():
            counted.set()
            return OSError("disk full")
        return None

    world.database.refuses = refuse
    gate.set()
    await counted.wait()
    await world.cancel(token)  # while the write is tried again
    assert await world.failure(token) == CANCELED
    assert len(runs) == 2


async def test_a_deadline_passes_while_down(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    def charge() -> None:
        ran["charge"] += 1

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(gate.wait, name="gate")
        await ctx.step(charge)

    world = await open_world(work(body))
    token = await world.start("run", operation_timeout=SOON)
    await world.kill()
    gate.set()
    await asyncio.sleep(SOON.total_seconds())
    await world.open()
    assert await world.failure(token) == TIMED_OUT
    assert not ran


async def test_the_shorter_of_both_limits_counts(open_world: OpenWorld) -> None:
    @service_handler(name="Work")
    class Work:
        @durable_operation(timeout=SOON)
        async def short(self, ctx: DurableContext, input: None) -> None:
            await ctx.sleep(HOUR)

        @durable_operation
        async def none(self, ctx: DurableContext, input: None) -> str:
            return str(ctx.deadline)

    world = await open_world(Work())
    assert await world.failure(await world.start("short")) == TIMED_OUT
    assert await world.failure(await world.start("short", operation_timeout=HOUR)) == TIMED_OUT
    assert await world.result(await world.start("none")) == "None"
    token = await world.start("none", operation_timeout=timedelta.max)
    assert await world.result(token) == "9999-12-31 23:59:59+00:00"


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("by_deadline", [False, True])
async def test_cleanup_has_its_limit(open_world: OpenWorld, hangs: bool, by_deadline: bool) -> None:
    released = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            while not released.is_set():
                try:
                    await (released.wait() if hangs else ctx.sleep(HOUR))
                except asyncio.CancelledError:
                    continue

    world = await open_world(work(body), settings=EngineSettings(cleanup_seconds=0.05))
    token = await world.start("run", operation_timeout=SOON if by_deadline else None)
    await world.waits_at(token, "sleep#1")
    if not by_deadline:
        await world.cancel(token)
    assert await world.failure(token) == (TIMED_OUT if by_deadline else CANCELED)
    assert world.engine.live == int(hangs)  # a task that hangs is all that is left of it
    released.set()
    await until(lambda: world.engine.live == 0)


async def test_a_restart_in_a_plain_wait_does_not_outlive_the_cleanup_limit(
    open_world: OpenWorld,
) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await forever()
        finally:
            await ctx.sleep(HOUR)

    world = await open_world(work(body), settings=EngineSettings(cleanup_seconds=60))
    token = await world.start("run")
    await asyncio.sleep(0.01)
    await world.cancel(token)
    await world.waits_at(token, "sleep#1")
    await world.kill()
    world.settings = EngineSettings(cleanup_seconds=0.05)
    await world.open()
    assert await world.failure(token) == CANCELED


async def paused_operation(open_world: OpenWorld, **options: Any) -> tuple[World, str]:
    price = iter([1, 2, 3, 4])

    async def charge(amount: int) -> int:
        return amount

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge, next(price))
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run", **options)
    await world.waits_at(token, "sleep#1")
    await world.reopen()
    await world.paused(token)
    return world, token


async def test_a_cancel_ends_a_paused_operation_without_its_code(open_world: OpenWorld) -> None:
    world, token = await paused_operation(open_world, callback=callback())
    assert await world.engine.state(_key(world), token) == "running"
    await world.cancel(token)
    assert await world.failure(token) == CANCELED
    await until(lambda: world.sender.posts)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_paused_operation_keeps_its_deadline(open_world: OpenWorld, restart: bool) -> None:
    limit = timedelta(milliseconds=700)
    world, token = await paused_operation(open_world, operation_timeout=limit)
    if restart:
        await world.reopen()
    assert await world.failure(token) == TIMED_OUT


async def test_an_operation_that_is_not_served_keeps_its_deadline(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run", operation_timeout=timedelta(milliseconds=200))
    await world.kill()
    world.services = []
    await world.open()

    async def has_ended() -> bool:
        return (await world.stored(token)).state.ended

    await until_found(has_ended)
    assert b"operation timed out" in ((await world.stored(token)).failure or b"")


async def test_a_cancel_and_a_divergence_at_once_end_it(open_world: OpenWorld) -> None:
    price = iter([1, 2, 3])

    async def charge(amount: int) -> int:
        return amount

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge, next(price))
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.kill()
    await world.open()
    await world.cancel(token)
    assert await world.failure(token) == CANCELED


async def test_a_cancel_while_the_pause_is_written_ends_it(open_world: OpenWorld) -> None:
    price = iter([1, 2, 3])

    async def charge(amount: int) -> int:
        return amount

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge, next(price))
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.reopen()
    pausing = asyncio.Event()

    def refuse(write: Any) -> Exception | None:
        if type(write).__name__ == "Pause" and not pausing.is_set():
            pausing.set()
            return OSError("disk full")
        return None

    world.database.refuses = refuse
    await pausing.wait()
    await world.cancel(token)
    assert await world.failure(token) == CANCELED


async def test_a_task_that_is_not_waited_for_goes_on_as_it_did(open_world: OpenWorld) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        aside = asyncio.create_task(ctx.step(gates[0].wait, name="aside"))
        seen = []
        try:
            await ctx.sleep(HOUR)
        except asyncio.CancelledError:
            seen.append("cancelled")
        seen.append(str(await aside))
        await ctx.step(gates[1].wait, name="end")
        return seen

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.cancel(token)
    await world.waits_at(token, "interrupt")
    gates[0].set()
    await world.waits_at(token, "1/aside#1")
    await world.reopen()
    gates[1].set()
    assert await world.result(token) == ["cancelled", "True"]


async def test_a_step_error_counts_as_once(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.step(fails, retry=RetryPolicy(max_attempts=1))
        except StepError as error:
            raise error from None

    world = await open_world(work(body))
    assert await world.failure(await world.start("run")) == (
        "failed",
        "step 'fails#1' failed once",
    )


def _key(world: World) -> Any:
    return world.request("run").key
