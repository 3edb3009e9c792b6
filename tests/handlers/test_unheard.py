"""Answers of the database that are lost, or come when the lease was lost meanwhile."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from callbacks.database import (
    DatabaseUnavailable,
    OutcomeUnknown,
    SqliteDatabase,
    Statement,
    Write,
)
from handlers import DurableContext
from handlers.engine_settings import EngineSettings
from handlers.store.running import LOOK
from handlers.testing.clock import FakeClock
from tests.handlers.replicas import Replica
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, until

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
HOUR_MS = 3_600_000


@pytest.fixture
async def replica(postgres_url: str) -> AsyncIterator[Replica]:
    """A process on PostgreSQL, where a query takes a while, with a handler that counts its runs."""
    ran: Counter[str] = Counter()

    async def count() -> None:
        ran["step"] += 1

    async def body(ctx: DurableContext, input: Any) -> int:
        await ctx.wait_for("go")
        await ctx.step(count)
        return ran["step"]

    settings = EngineSettings(suspend_after_seconds=0.0)
    one = Replica(postgres_url, [work(body)], settings=settings)
    await one.open()
    yield one
    await one.lose()


def loses_answer(world: World, kind: str, *, of: Callable[[Any], bool] = bool) -> list[str]:
    """Have the first write of a kind be committed, and its answer be lost; return what is left."""
    left = [kind]

    def lose(write: Write[Any]) -> Exception | None:
        if type(write).__name__ not in left or not of(write):
            return None
        left.clear()
        SqliteDatabase.write(world.database, write).cancel()  # only the answer
        return OutcomeUnknown("the answer was lost")

    world.database.refuses = lose
    return left


async def test_a_cancel_whose_record_is_unheard_of_comes_where_it_is_recorded(
    open_world: OpenWorld,
) -> None:
    ran: list[str] = []
    gate = asyncio.Event()

    async def note(name: str) -> None:
        ran.append(name)
        if name == "first":
            await gate.wait()

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.step(note, "first", name="first")
            await ctx.step(note, "second", name="second")
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(note, "cleanup", name="cleanup")

    world = await open_world(work(body))
    for number in range(2):
        ran.clear()
        gate.clear()
        token = await world.start("run", request_id=f"cancel-{number}")
        await until(lambda: ran == ["first"])
        left = loses_answer(world, "AppendJournal", of=lambda write: write.entry.key == "interrupt")
        await world.cancel(token)
        await until(lambda: not left)  # noqa: B023  # awaited within the loop
        if number:
            gate.set()
        assert await world.failure(token) == ("canceled", "operation canceled")
        assert ran == ["first", "cleanup"]
        keys = [entry.key for entry in await world.journal(token)]
        assert [key for key in keys if key != "first#1"] == ["interrupt", "cleanup#1"]


async def test_nothing_goes_on_while_it_may_be_out_of_memory(open_world: OpenWorld) -> None:
    clock = FakeClock()
    ran: Counter[int] = Counter()

    async def body(ctx: DurableContext, input: Any) -> int:
        await ctx.sleep(HOUR)

        async def count() -> None:
            ran[epoch()] += 1

        await ctx.step(count)
        return ran.total()

    def epoch() -> int:
        return next(iter(world.engine._runner._live.values())).epoch

    world = await open_world(
        work(body), settings=EngineSettings(suspend_after_seconds=5.0), clock=clock
    )
    left = loses_answer(world, "Suspend")
    token = await world.start("run")
    await until(lambda: not left)
    # Its sleep is over before the process knows whether it still has the operation.
    clock.jump(clock.now_ms() + HOUR_MS)
    await world.something_is_due()
    assert await world.result(token) == 1
    assert ran == {2: 1}


async def test_what_could_not_be_loaded_is_taken_up_soon(open_world: OpenWorld) -> None:
    clock = FakeClock()

    async def body(ctx: DurableContext, input: Any) -> str:
        await ctx.sleep(timedelta(seconds=10))
        return "done"

    world = await open_world(
        work(body), settings=EngineSettings(suspend_after_seconds=5.0), clock=clock
    )
    token = await world.start("run")
    await world.suspended(token)
    failed: list[Statement] = []

    def fail_once(statement: Statement) -> Exception | None:
        if statement is not LOOK or failed:
            return None
        failed.append(statement)
        return DatabaseUnavailable("the query failed")

    world.database.refuses_query = fail_once
    clock.jump(clock.now_ms() + 10_000)
    await world.something_is_due()
    await until(lambda: failed)
    await until(lambda: world.engine._claimer._orphans)
    clock.jump(clock.now_ms() + 3_001)
    assert await world.result(token) == "done"


async def test_what_is_loaded_when_the_lease_is_lost_is_not_run(replica: Replica) -> None:
    token = await replica.start("run")
    await until(lambda: not replica.engine.live)
    runner = replica.engine._runner
    stored = await replica.stored(token)
    hosted = replica.engine.services.find(stored.endpoint, stored.service, stored.operation)
    for abandon in (runner.abandon_all, lambda: runner.abandon(token)):
        taking = asyncio.ensure_future(runner.take_up(stored, hosted))
        await asyncio.sleep(0)
        assert runner.is_live(token)
        abandon()
        await taking
        assert not runner.is_live(token)


async def test_a_claim_that_is_heard_of_after_the_lease_was_lost_is_not_used(
    postgres_url: str,
) -> None:
    runs: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> None:
        runs.append(ctx.operation_token)
        await ctx.wait_for("go")

    settings = EngineSettings(suspend_after_seconds=0.0)
    replica = Replica(postgres_url, [work(body)], settings=settings)
    await replica.open()
    try:
        token = await replica.start("run")
        await until(lambda: runs and not replica.engine.live)
        term = replica.lease.term
        replica.lose_lease()
        await replica.lease.held()
        stored = await replica.stored(token)
        taking_up = replica.engine._claimer._taking_up
        await taking_up._take_up("due", [stored], term)
        await asyncio.sleep(0)  # a task that was made has begun by now
        assert runs == [token]
        await taking_up._take_up("due", [stored], replica.lease.term)
        await until(lambda: len(runs) == 2)
    finally:
        await replica.lose()


async def test_a_start_that_is_heard_of_after_the_lease_was_lost_is_found_again(
    replica: Replica,
) -> None:
    starting = asyncio.ensure_future(replica.start("run"))
    await until(lambda: replica.engine._starting._recording)
    replica.lose_lease()
    token = await starting
    assert not replica.engine.live
    await replica.engine.signal(token, "go", b"1")
    assert await replica.result(token) == 1
    assert (await replica.stored(token)).epoch > 1
