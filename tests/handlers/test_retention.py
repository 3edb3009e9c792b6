"""Closed operations are kept for a while, and as long as a completion of theirs is undelivered."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Statement, table_of
from callbacks.records import CallbackRecord, DeliveryAttemptRecord
from clients.sender import SentResponse
from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.records import JournalRecord, OperationRecord, SignalRecord
from handlers.store.operations import LOAD
from handlers.store.retention import DeleteExpired, Expired
from tests.handlers.test_steps import work
from tests.handlers.world import Post, World, callback, response, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
AT_ONCE = EngineSettings(retention=timedelta(0))
TABLES = [
    table_of(model)
    for model in (
        OperationRecord,
        JournalRecord,
        SignalRecord,
        CallbackRecord,
        DeliveryAttemptRecord,
    )
]


async def step() -> int:
    return 1


async def body(ctx: DurableContext, input: Any) -> Any:
    await ctx.step(step)
    return await ctx.wait_for("go", Any)


async def rows(world: World) -> list[int]:
    """Return how many rows each table has."""
    counts = [Statement(sa.select(sa.func.count()).select_from(table)) for table in TABLES]
    return [(await world.database.fetch(count, {}))[0][0] for count in counts]


async def refuse(post: Post) -> SentResponse:
    return response(400)


async def test_an_operation_goes_with_all_that_was_kept_of_it(open_world: OpenWorld) -> None:
    world = await open_world(work(body), settings=AT_ONCE)
    first = await world.start("run", callback=callback())
    kept = await world.start("run")
    await world.engine.signal(first, "go", b"1")
    await world.delivered(first)
    world.engine._claimer._expiry.next_at = 0  # as after a minute
    await world.something_was_missed()

    async def is_gone() -> bool:
        return not await world.database.fetch(LOAD, {"token": first})

    await until_found(is_gone)
    assert await rows(world) == [1, 1, 0, 0, 0]
    assert world.engine.stats.expired == 1
    # Its request id is free again.
    assert (await world.stored(kept)).state == "running"


async def test_what_is_not_delivered_is_kept(open_world: OpenWorld) -> None:
    world = await open_world(work(body), settings=AT_ONCE)
    world.sender.answer = refuse
    token = await world.start("run", callback=callback())
    await world.engine.signal(token, "go", b"1")

    async def is_dead() -> bool:
        return [row[3] for row in await world.callbacks(token)] == ["failed"]

    await until_found(is_dead)
    now = world.engine._deadlines._clock.now_ms() + 1
    looked = await world.database.write(DeleteExpired(now, 10, 5000))
    assert looked in (Expired(0, 1), Expired(0, 0))  # the second: the engine itself has looked
    assert (await world.stored(token)).state == "succeeded"
    assert (await rows(world))[:2] == [1, 2]
    # It stands before nothing that can go, until it is looked at again.
    assert await world.database.write(DeleteExpired(now, 10, 5000)) == Expired(0, 0)


async def test_what_ended_lately_is_kept(open_world: OpenWorld) -> None:
    world = await open_world(work(body))
    token = await world.start("run")
    await world.engine.signal(token, "go", b"1")
    ended = await world.ended(token)
    assert ended.closed_at is not None
    week = 7 * 24 * 3600 * 1000
    assert await world.database.write(DeleteExpired(ended.closed_at + week - 1, 10, 1)) == Expired(
        0, 0
    )
    assert await world.database.write(DeleteExpired(ended.closed_at + week, 10, 1)) == Expired(1, 0)
