"""Leases: who is alive, by the database's clock, and who may begin something, by one's own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Statement, Write, database_now, table_of
from callbacks.leases import Lease, live_replicas
from callbacks.records import ReplicaRecord
from tests.callbacks.office import FakeClock, FaultyDatabase, Place, Run, until
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

_replica = table_of(ReplicaRecord)
LIVE = Statement(live_replicas())
ALL = Statement(sa.select(_replica.c.id).order_by(_replica.c.id))
NOW = Statement(sa.select(database_now()))
ADD = Statement(
    sa.insert(_replica).values(
        id=sa.bindparam("id"),
        lease_until=database_now() + sa.bindparam("in_ms"),
        version="1",
        started_at=0,
    )
)
EXPIRE = Statement(
    sa.update(_replica).where(_replica.c.id == sa.bindparam("row_id")).values(lease_until=0)
)
DELETE = Statement(sa.delete(_replica).where(_replica.c.id == sa.bindparam("row_id")))


class Process:
    """A process that holds a lease, and a clock to move."""

    def __init__(self, database: FaultyDatabase, clock: FakeClock, seconds: float) -> None:
        self.database = database
        self.clock = clock
        self.lease = Lease(database, seconds=seconds, clock=clock)
        self.losses = 0
        self.lease.on_lost(self._lost)

    def _lost(self) -> None:
        self.losses += 1

    async def passes(self, seconds: float) -> None:
        """Let time pass once the lease's two tasks wait for it."""
        await until(lambda: self.clock.sleeping == 2)
        self.clock.advance(seconds)

    async def sends_a_heartbeat(self) -> asyncio.Event:
        """Let a quarter of the lease pass; return what lets the reply arrive."""
        reply = asyncio.Event()
        sent: list[Write[Any]] = []

        def hold_up(write: Write[Any]) -> asyncio.Event:
            sent.append(write)
            return reply

        self.database.holds_up = hold_up
        await self.passes(self.lease.seconds / 4)
        await until(lambda: sent)
        return reply

    async def live(self) -> bool:
        return (self.lease.id,) in await self.database.fetch(LIVE, {})


OpenProcess = Callable[..., Coroutine[Any, Any, Process]]


@pytest.fixture
async def open_process(place: Place) -> AsyncIterator[OpenProcess]:
    opened: list[Process] = []

    async def open_one(*, wrong_by_ms: int = 0, seconds: float = 40.0) -> Process:
        database = await place.connect(together=True)
        process = Process(database, FakeClock(wrong_by_ms), seconds)
        opened.append(process)
        await process.lease.open()
        await until(lambda: process.clock.sleeping == 2)  # its two tasks wait for time to pass
        return process

    yield open_one
    for process in opened:
        await process.lease.close()
        await process.database.aclose()


async def test_a_replica_lives_from_open_to_close(open_process: OpenProcess) -> None:
    one, other = await open_process(), await open_process()
    assert one.lease.id != other.lease.id
    assert one.lease.holds()
    assert await one.live()
    assert await other.live()
    await one.lease.close()
    assert not one.lease.holds()
    assert not await one.live()
    assert await other.live()
    await one.lease.close()


async def test_nothing_begins_past_four_fifths_of_the_lease(open_process: OpenProcess) -> None:
    process = await open_process()
    process.database.refuses = lambda _: True
    process.clock.freeze(31.9)
    assert process.lease.holds()
    process.clock.freeze(0.2)
    assert not process.lease.holds()
    waiting = asyncio.ensure_future(process.lease.held())
    await asyncio.wait([waiting], timeout=0)
    assert not waiting.done()
    process.database.refuses = lambda _: False
    process.clock.advance(0)  # the heartbeat wakes late and finds the lease good
    await waiting
    assert process.lease.holds()
    assert process.losses == 0


async def test_it_is_renewed_every_quarter(open_process: OpenProcess) -> None:
    process = await open_process()
    for _ in range(12):
        await process.passes(10)
        await until(process.lease.holds)
    assert process.losses == 0
    assert not process.lease.lost_recently()


async def test_the_time_counts_from_before_the_heartbeat_was_sent(
    open_process: OpenProcess,
) -> None:
    process = await open_process()
    reply = await process.sends_a_heartbeat()
    process.clock.freeze(29)
    reply.set()
    await until(process.lease.holds)
    process.clock.freeze(3.1)  # 32.1 since it was sent, 3.1 since it was answered
    assert not process.lease.holds()


async def test_a_lease_that_cannot_be_renewed_is_lost_once_and_goes_on(
    open_process: OpenProcess,
) -> None:
    process = await open_process()
    term = process.lease.term
    process.database.refuses = lambda _: True
    for _ in range(4):
        await process.passes(9.9)
    assert process.losses == 0
    assert process.lease.kept_since(term)
    process.clock.advance(0.5)
    for _ in range(3):
        # The one task goes on trying, the other waits for a renewal.
        await until(lambda: process.losses == 1 and process.clock.sleeping == 1)
        assert not process.lease.kept_since(process.lease.term)
        process.clock.advance(100)
    await until(lambda: process.clock.sleeping == 1)
    process.database.refuses = lambda _: False
    process.clock.advance(100)
    await process.lease.held()
    assert process.losses == 1
    assert process.lease.lost_recently()
    assert process.lease.kept_since(process.lease.term)
    assert not process.lease.kept_since(term)
    assert await process.live()
    for _ in range(5):
        await process.passes(10)
        await until(process.lease.holds)
    assert not process.lease.lost_recently()
    assert process.losses == 1


async def test_an_answer_after_the_whole_lease_is_a_loss(open_process: OpenProcess) -> None:
    process = await open_process()
    reply = await process.sends_a_heartbeat()
    process.clock.freeze(31)  # stopped: 41 since the last renewal that is known of
    reply.set()
    await until(process.lease.holds)
    assert process.losses == 1


@pytest.mark.parametrize("statement", [EXPIRE, DELETE], ids=["expired", "gone"])
async def test_a_lease_that_ended_on_the_database_is_lost(
    open_process: OpenProcess, statement: Statement
) -> None:
    process = await open_process()
    name = process.lease.id
    seen: list[bool] = []
    process.lease.on_lost(lambda: seen.append(process.lease.holds()))
    await process.database.write(Run(statement, {"row_id": name}))
    assert not await process.live()
    await process.passes(10)
    await until(lambda: process.losses == 1)
    assert seen == [False]

    async def lives_again() -> bool | None:
        return await process.live() or None

    await eventually(lives_again)
    await process.lease.held()
    assert process.lease.id == name
    assert process.losses == 1


async def test_a_callback_that_breaks_does_not_stop_the_others(open_process: OpenProcess) -> None:
    process = await open_process()
    told: list[int] = []

    def broken() -> None:
        raise RuntimeError("bug")

    process.lease.on_lost(broken)
    process.lease.on_lost(lambda: told.append(1))
    await process.database.write(Run(EXPIRE, {"row_id": process.lease.id}))
    await process.passes(10)
    await until(lambda: told)
    await process.lease.held()


async def test_a_renewal_whose_reply_was_lost_is_none(open_process: OpenProcess) -> None:
    process = await open_process()
    process.database.loses_reply = lambda _: True
    for _ in range(4):
        await process.passes(9)
    assert not process.lease.holds()
    assert await process.live()


async def test_the_long_dead_are_forgotten(open_process: OpenProcess) -> None:
    process = await open_process()
    hour_ms = 3_600_000
    for name, in_ms in (("long", -hour_ms - 1000), ("lately", -hour_ms + 60_000)):
        await process.database.write(Run(ADD, {"id": name, "in_ms": in_ms}))
    other = await open_process()
    ids = {row[0] for row in await process.database.fetch(ALL, {})}
    assert ids == {"lately", process.lease.id, other.lease.id}


async def test_all_know_the_databases_time(open_process: OpenProcess) -> None:
    for wrong_by_ms in (-7_200_000, 0, 7_200_000):
        process = await open_process(wrong_by_ms=wrong_by_ms)
        true_ms = (await process.database.fetch(NOW, {}))[0][0]
        assert abs(process.lease.now_ms() - true_ms) < 10_000
        process.clock.freeze(3)
        assert 2000 < process.lease.now_ms() - true_ms < 13_000


async def test_a_lease_that_cannot_be_given_up_runs_out(open_process: OpenProcess) -> None:
    process = await open_process()
    process.database.refuses = lambda _: True
    await process.lease.close()
    assert not process.lease.holds()
    assert await process.live()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_who_holds_the_file_alone_never_loses_it(place: Place) -> None:
    database = await place.connect()
    assert not database.shared
    await database.write(Run(ADD, {"id": "killed", "in_ms": 100_000}))
    clock = FakeClock(wrong_by_ms=5)
    lease = Lease(database, clock=clock)
    assert not lease.holds()
    await lease.open()
    assert await database.fetch(LIVE, {}) == [(lease.id,)]
    clock.freeze(1e6)
    assert lease.holds()
    await lease.held()
    assert lease.now_ms() == clock.now_ms()
    assert clock.sleeping == 0
    assert await database.fetch(LIVE, {}) == [(lease.id,)]
    await lease.close()
    assert await database.fetch(ALL, {}) == []
    await database.aclose()
