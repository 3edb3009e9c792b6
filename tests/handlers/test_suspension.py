"""Operations that wait out of memory, and what brings them back."""

import asyncio
import gc
import random
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from handlers import DurableContext, RetryPolicy
from handlers.engine_settings import EngineSettings
from handlers.store.signals import Received
from handlers.testing.clock import FakeClock
from tests.handlers.test_signals import parked
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
SUSPENDS = EngineSettings(suspend_after_seconds=5.0)
AT_ONCE = EngineSettings(suspend_after_seconds=0.0)
HOUR_MS = 3_600_000


async def woken_by_time(world: World, clock: FakeClock, milliseconds: int) -> None:
    """Let time pass, and have the engine look at what is due."""
    clock.jump(clock.now_ms() + milliseconds)
    await world.something_is_due()


async def at_rest(world: World, token: str) -> None:
    """Wait until the handler waits, and the engine has noticed."""
    await parked(world, token)
    for _ in range(100):
        await asyncio.sleep(0)


async def nothing() -> None:
    return None


async def test_a_long_sleep_is_spent_out_of_memory(open_world: OpenWorld) -> None:
    clock = FakeClock()
    contexts: weakref.WeakSet[DurableContext] = weakref.WeakSet()
    ran: Counter[str] = Counter()

    async def count() -> None:
        ran["step"] += 1

    async def body(ctx: DurableContext, input: Any) -> str:
        contexts.add(ctx)
        await ctx.step(count)
        await ctx.sleep(HOUR)
        await ctx.step(count)
        return str(ctx.now())

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    tokens = [await world.start("run") for _ in range(20)]
    for token in tokens:
        stored = await world.suspended(token)
        assert stored.run_at == (await world.journal(token))[1].wake_at
        assert stored.owner is None
    await until(lambda: not world.engine._runner._tasks)
    gc.collect()
    assert len(contexts) == world.engine.live == 0
    await woken_by_time(world, clock, HOUR_MS)
    for token in tokens:
        await world.result(token)
    assert ran["step"] == 40
    assert (await world.stored(tokens[0])).epoch == 2


async def test_a_short_sleep_stays(open_world: OpenWorld) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> None:
        await asyncio.gather(ctx.sleep(timedelta(seconds=4)), ctx.sleep(HOUR))

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")
    await at_rest(world, token)
    assert world.engine.live == 1
    clock.jump(clock.now_ms() + 4_000)
    await world.suspended(token)  # only the long one is left
    await woken_by_time(world, clock, HOUR_MS)
    await world.result(token)


async def test_a_wait_for_a_signal_leaves_after_a_while(open_world: OpenWorld) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> Any:
        return await ctx.wait_for("word")

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")
    await at_rest(world, token)
    assert world.engine.live == 1
    clock.jump(clock.now_ms() + 5_001)
    stored = await world.suspended(token)
    assert stored.run_at is None
    assert await world.signal(token, "word", "hello") is Received.NEW
    assert await world.result(token) == "hello"


async def test_a_timeout_brings_a_wait_back(open_world: OpenWorld) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.wait_for("word", timeout=HOUR)
        except TimeoutError:
            return "timeout"
        return ""

    world = await open_world(work(body), settings=AT_ONCE, clock=clock)
    token = await world.start("run")
    assert (await world.suspended(token)).run_at == clock.now_ms() + HOUR_MS
    await woken_by_time(world, clock, HOUR_MS)
    assert await world.result(token) == "timeout"


async def test_a_cancel_and_a_deadline_bring_it_back_to_clean_up(open_world: OpenWorld) -> None:
    clock = FakeClock()
    cleaned_up: list[Any] = []

    async def clean_up(input: Any) -> None:
        cleaned_up.append(input)

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(clean_up, input)

    world = await open_world(work(body), settings=AT_ONCE, clock=clock)
    canceled = await world.start("run", "cancel")
    late = await world.start("run", "deadline", operation_timeout=timedelta(minutes=1))
    await world.suspended(canceled)
    assert (await world.suspended(late)).run_at == clock.now_ms() + 60_000
    await world.cancel(canceled)
    assert await world.failure(canceled) == ("canceled", "operation canceled")
    await woken_by_time(world, clock, 60_000)
    assert await world.failure(late) == ("failed", "operation timed out")
    assert sorted(cleaned_up) == ["cancel", "deadline"]


Waits = Callable[[DurableContext, asyncio.Event], Awaitable[Any]]


async def plain(ctx: DurableContext, gate: asyncio.Event) -> None:
    await ctx.step(nothing)
    await gate.wait()


async def with_timeout(ctx: DurableContext) -> None:
    async with asyncio.timeout(3600):
        await ctx.sleep(HOUR)


async def in_group(ctx: DurableContext, *others: Awaitable[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.sleep(HOUR))
        for other in others:
            group.create_task(_awaiting(other))


async def _awaiting(other: Awaitable[Any]) -> None:
    await other


async def main_waits_itself(ctx: DurableContext, gate: asyncio.Event) -> None:
    aside = asyncio.create_task(ctx.sleep(HOUR))
    await gate.wait()
    await aside


STAY: dict[str, Waits] = {
    "gather": lambda ctx, gate: asyncio.gather(ctx.sleep(HOUR), plain(ctx, gate)),
    "unknown task": lambda ctx, gate: asyncio.gather(ctx.sleep(HOUR), gate.wait()),
    "group": lambda ctx, gate: in_group(ctx, gate.wait()),
    "ctx.gather": lambda ctx, gate: ctx.gather(ctx.sleep(HOUR), plain(ctx, gate)),
    "timeout": lambda ctx, gate: with_timeout(ctx),
    "timeout in a branch": lambda ctx, gate: ctx.gather(with_timeout(ctx), ctx.sleep(HOUR)),
    "wait_for": lambda ctx, gate: asyncio.wait_for(ctx.sleep(HOUR), 3600),
    "main": main_waits_itself,
    "step": lambda ctx, gate: asyncio.gather(ctx.sleep(HOUR), ctx.step(gate.wait, name="gate")),
}
LEAVE: dict[str, Waits] = {
    "gather": lambda ctx, gate: asyncio.gather(ctx.sleep(HOUR), ctx.sleep(HOUR)),
    "nested": lambda ctx, gate: ctx.gather(ctx.sleep(HOUR), ctx.gather(ctx.sleep(HOUR))),
    "group": lambda ctx, gate: in_group(ctx, ctx.sleep(HOUR), in_group(ctx)),
    "wait": lambda ctx, gate: asyncio.wait([asyncio.ensure_future(ctx.sleep(HOUR))]),
    "task": lambda ctx, gate: asyncio.ensure_future(in_group(ctx)),
    "done": lambda ctx, gate: asyncio.gather(ctx.step(nothing), ctx.sleep(HOUR)),
}


@pytest.mark.parametrize("how", STAY)
async def test_what_the_handler_awaits_of_its_own_keeps_it(open_world: OpenWorld, how: str) -> None:
    gate = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> None:
        await STAY[how](ctx, gate)

    world = await open_world(work(body), settings=AT_ONCE)
    token = await world.start("run")
    await asyncio.sleep(0.05)
    assert (await world.stored(token)).state == "running"
    assert world.engine.live == 1
    gate.set()
    if how not in ("timeout", "timeout in a branch", "wait_for"):
        await world.suspended(token)


@pytest.mark.parametrize("how", LEAVE)
async def test_a_handler_that_waits_in_all_its_branches_leaves(
    open_world: OpenWorld, how: str
) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> None:
        await LEAVE[how](ctx, asyncio.Event())

    world = await open_world(work(body), settings=AT_ONCE, clock=clock)
    token = await world.start("run")
    await world.suspended(token)
    await woken_by_time(world, clock, HOUR_MS)
    await world.result(token)
    assert (await world.stored(token)).epoch == 2


async def test_a_long_wait_between_attempts_is_spent_out_of_memory(open_world: OpenWorld) -> None:
    clock = FakeClock()
    ran: Counter[str] = Counter()

    async def breaks() -> int:
        ran["breaks"] += 1
        if ran["breaks"] < 4:
            raise ValueError("not yet")
        return ran["breaks"]

    async def body(ctx: DurableContext, input: Any) -> int:
        policy = RetryPolicy(max_attempts=4, initial_interval=HOUR, max_interval=HOUR)
        return await ctx.step(breaks, retry=policy)

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")
    for attempt in (1, 2, 3):
        stored = await world.suspended(token)
        assert stored.run_at == clock.now_ms() + HOUR_MS
        assert f'"attempt": {attempt}' in (stored.retrying or "")
        assert '"error": "ValueError: not yet"' in (stored.retrying or "")
        await woken_by_time(world, clock, HOUR_MS)
        await until(lambda: ran["breaks"] == attempt + 1)  # noqa: B023  # within this turn
    assert await world.result(token) == 4
    assert (await world.stored(token)).retrying is None
    last = (await world.journal(token))[-1]
    assert (last.key, last.attempt) == ("breaks#1", 4)


async def test_a_step_that_is_tried_again_soon_is_shown(open_world: OpenWorld) -> None:
    clock = FakeClock()
    may_pass = False

    async def breaks() -> None:
        if not may_pass:
            raise ValueError("not yet")

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(breaks)

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")

    async def is_shown() -> bool:
        return '"step": "breaks#1", "attempt": 1' in ((await world.stored(token)).retrying or "")

    await until_found(is_shown)
    may_pass = True
    clock.jump(clock.now_ms() + 1_000)
    await world.result(token)
    assert (await world.stored(token)).retrying is None


async def test_a_failed_handler_waits_for_its_next_run_out_of_memory(
    open_world: OpenWorld,
) -> None:
    clock = FakeClock()
    runs: list[int] = []

    async def body(ctx: DurableContext, input: Any) -> int:
        runs.append(1)
        if len(runs) < 5:
            raise ValueError("not yet")
        return len(runs)

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")
    for run, seconds in ((1, 1), (2, 2), (3, 4)):
        await until(lambda: len(runs) == run)  # noqa: B023  # within this turn

        def is_backing_off() -> bool:
            live = world.engine._runner._live.get(token)
            return live is not None and live.backoff is not None

        await until(is_backing_off)
        clock.jump(clock.now_ms() + seconds * 1000)
    stored = await world.suspended(token)
    assert stored.attempts == 4
    await woken_by_time(world, clock, 8_000)
    assert await world.result(token) == 5


@pytest.mark.parametrize("seed", range(40))
async def test_a_signal_that_races_a_suspension_is_never_missed(
    open_world: OpenWorld, seed: int
) -> None:
    draw = random.Random(seed)
    count = 6

    async def body(ctx: DurableContext, input: Any) -> list[int]:
        words = [await ctx.wait_for("word", int) for _ in range(count // 2)]
        first, second, third = await ctx.gather(
            ctx.wait_for("word", int), ctx.wait_for("word", int), ctx.wait_for("word", int)
        )
        return [*words, first, second, third]

    world = await open_world(work(body), settings=AT_ONCE)
    token = await world.start("run")
    suspended = 0
    for number in range(count):
        for _ in range(draw.randrange(30)):
            await asyncio.sleep(0)
        suspended += (await world.stored(token)).state == "ready"
        if draw.random() < 0.15:
            await world.reopen()
        await world.signal(token, "word", number)
    result = await world.result(token)
    assert sorted(result) == list(range(count))
    assert result[: count // 2] == sorted(result[: count // 2])


@pytest.mark.parametrize("refused", [False, True])
async def test_a_refused_suspension_is_tried_again(open_world: OpenWorld, refused: bool) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> Any:
        return await ctx.wait_for("word")

    world = await open_world(work(body), settings=SUSPENDS, clock=clock)
    token = await world.start("run")
    await at_rest(world, token)
    refusals = [OSError("disk full")]

    def refuse(write: Any) -> Exception | None:
        return refusals.pop() if type(write).__name__ == "Suspend" and refusals else None

    if refused:
        world.database.refuses = refuse
        clock.jump(clock.now_ms() + 5_001)
        await until(lambda: not refusals)
        await at_rest(world, token)
        assert world.engine.live == 1
    clock.jump(clock.now_ms() + 5_001)
    await world.suspended(token)
    await world.signal(token, "word", 1)
    assert await world.result(token) == 1


async def test_an_abandoned_operation_writes_nothing(open_world: OpenWorld) -> None:
    cleaned_up: list[int] = []

    async def clean_up() -> None:
        cleaned_up.append(1)

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(clean_up)

    world = await open_world(work(body))
    tokens = [await world.start("run") for _ in range(3)]
    for token in tokens:
        await world.waits_at(token, "sleep#1")
    runner = world.engine._runner
    runner.abandon(tokens[0])
    assert set(runner.live_tokens()) == set(tokens[1:])
    runner.abandon_all()
    assert runner.live == 0
    await until(lambda: not runner._tasks)
    assert not cleaned_up
    for token in tokens:
        assert (await world.stored(token)).state == "running"
        assert len(await world.journal(token)) == 1


class Lapsing:
    """A lease that can be let go of."""

    def __init__(self) -> None:
        self.renewed = asyncio.Event()

    def holds(self) -> bool:
        return self.renewed.is_set()

    async def held(self) -> None:
        await self.renewed.wait()


async def test_no_attempt_begins_without_the_lease(open_world: OpenWorld) -> None:
    ran: list[int] = []

    async def charge() -> None:
        ran.append(1)

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge)

    world = await open_world(work(body))
    lease = Lapsing()
    world.engine._runner._runs.steps.lease = lease
    token = await world.start("run")
    dropped = await world.start("run")
    await asyncio.sleep(0.01)
    assert not ran
    world.engine._runner.abandon(dropped)
    lease.renewed.set()
    await world.result(token)
    assert len(ran) == 1
