"""Several gateway processes on one PostgreSQL database: what one loses the others continue."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from nexusrpc import OperationError, OperationErrorState

from callbacks.database import Statement, Transaction
from callbacks.delivery_queries import CALLBACKS_OF
from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.records import State
from handlers.requests import Started, Succeeded
from handlers.store.ending import Finish
from handlers.store.journals import AppendJournal, JournalEntry
from tests.callbacks.office import FixedTerms
from tests.handlers.replicas import LEASE_SECONDS, Replica
from tests.handlers.test_steps import work
from tests.handlers.world import callback, error_of, key, request, until, until_found

pytestmark = pytest.mark.anyio

OpenReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def open_replica(postgres_url: str) -> AsyncIterator[OpenReplica]:
    """Opens processes on one database, and ends them after the test."""
    replicas: list[Replica] = []

    async def open_one(*services: Any, **options: Any) -> Replica:
        replicas.append(Replica(postgres_url, services, **options))
        return await replicas[-1].open()

    yield open_one
    for one in replicas:
        if one.is_open:
            await one.lose()


class Gate:
    """A handler that counts its steps and waits in between, on whichever process it runs."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.may_go_on = asyncio.Event()

    async def count(self, name: str) -> str:
        self.ran[name] += 1
        return name

    async def wait(self) -> None:
        self.ran["wait"] += 1
        await self.may_go_on.wait()

    async def run(self, ctx: DurableContext, input: Any) -> list[str]:
        first = await ctx.step(self.count, "first")
        await ctx.step(self.wait)
        return [first, await ctx.step(self.count, "last")]


async def test_the_operations_of_a_lost_process_continue_within_two_leases(
    open_replica: OpenReplica,
) -> None:
    gate = Gate()
    lost = await open_replica(work(gate.run))
    other = await open_replica(work(gate.run))
    tokens = [await lost.start("run", callback=callback(n)) for n in range(20)]
    await until(lambda: gate.ran["wait"] == 20)
    began = time.monotonic()
    await lost.lose()
    gate.may_go_on.set()
    for token in tokens:
        assert await other.result(token) == ["first", "last"]
    assert time.monotonic() - began < 2 * LEASE_SECONDS + 0.5  # what the machine itself takes
    assert gate.ran == {"first": 20, "wait": 40, "last": 20}
    await until(lambda: len(other.sender.posts) == 20)
    assert {(await other.stored(token)).epoch for token in tokens} == {2}


async def test_what_a_drained_process_hands_back_continues_at_once(
    open_replica: OpenReplica,
) -> None:
    gate = Gate()
    leaving = await open_replica(work(gate.run), lease_seconds=60)
    other = await open_replica(work(gate.run), lease_seconds=60)
    token = await leaving.start("run")
    await until(lambda: gate.ran["wait"] == 1)
    leaving.is_open = False
    closing = asyncio.ensure_future(leaving.engine.close(0.0))
    await until(lambda: gate.ran["wait"] == 2)  # long before a lease would have run out
    gate.may_go_on.set()
    assert await other.result(token) == ["first", "last"]
    assert (await other.stored(token)).losses == 0
    await closing
    await leaving.delivery.close(1.0)
    await leaving.lease.close()
    await leaving.database.aclose()


async def test_a_cancel_reaches_the_process_that_runs_it(open_replica: OpenReplica) -> None:
    gate = Gate()
    cleaned_up: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.step(gate.wait)
        finally:
            cleaned_up.append("here")

    one = await open_replica(work(body), lease_seconds=60)
    other = await open_replica(work(body), lease_seconds=60)
    token = await one.start("run")
    await until(lambda: gate.ran["wait"] == 1)
    waiting = asyncio.ensure_future(error_of(other.engine.result(key("run"), token, 10.0)))
    began = time.monotonic()
    await other.engine.cancel(key("run"), token, {})
    error = await waiting
    assert isinstance(error, OperationError)
    assert error.state is OperationErrorState.CANCELED
    assert time.monotonic() - began < 3
    assert (await one.stored(token)).epoch == 1
    assert cleaned_up == ["here"]


@pytest.mark.parametrize("suspended", [False, True])
async def test_a_signal_and_a_result_reach_every_process(
    open_replica: OpenReplica, suspended: bool
) -> None:
    async def body(ctx: DurableContext, input: Any) -> Any:
        return await ctx.wait_for("go", dict)

    settings = EngineSettings(suspend_after_seconds=0.0 if suspended else 60.0)
    one = await open_replica(work(body), lease_seconds=60, settings=settings)
    other = await open_replica(work(body), lease_seconds=60, settings=settings)
    token = await one.start("run")
    if suspended:

        async def is_suspended() -> bool:
            return (await one.stored(token)).state is State.READY

        await until_found(is_suspended)
    else:
        await until(lambda: one.engine.live == 1)
    waiting = [
        asyncio.ensure_future(replica.engine.result(key("run"), token, 10.0))
        for replica in (one, other)
    ]
    await asyncio.sleep(0)
    began = time.monotonic()
    assert await other.engine.signal(token, "go", b'{"by":"mia"}', "click")
    assert not await one.engine.signal(token, "go", b'{"by":"mia"}', "click")
    for answer in await asyncio.gather(*waiting):
        assert isinstance(answer, Succeeded)
        assert answer.content.data == b'{"by":"mia"}'
    assert time.monotonic() - began < 5


async def test_a_start_is_the_same_at_every_process(open_replica: OpenReplica) -> None:
    gate = Gate()
    gate.may_go_on.set()
    replicas = [await open_replica(work(gate.run)) for _ in range(2)]
    asked = request("run")
    answers = await asyncio.gather(*(one.engine.start(asked) for one in replicas * 5))
    tokens = {answer.token for answer in answers if isinstance(answer, Started)}
    assert len(tokens) == 1
    assert await replicas[1].result(tokens.pop()) == ["first", "last"]
    assert gate.ran == {"first": 1, "wait": 1, "last": 1}


# ---------------------------------------------------------------- fencing


def entry(name: str) -> JournalEntry:
    return JournalEntry(name, 99, "step", None, b"1", None, None, 1, None, 0)


def finish(token: str, epoch: int, owner: str) -> Finish:
    return Finish(
        token=token,
        epoch=epoch,
        state=State.SUCCEEDED,
        output=b'"stale"',
        output_headers='{"content-type": "application/json"}',
        failure=None,
        error_detail=None,
        completion=lambda: ((), b""),
        now=int(time.time() * 1000),
        retention_ms=1000,
        terms=FixedTerms(owner),
    )


@pytest.mark.parametrize("overtaken", [True, False], ids=["overtaken", "control"])
async def test_an_owner_that_was_overtaken_writes_nothing(
    open_replica: OpenReplica, overtaken: bool
) -> None:
    """Without being overtaken (the control) all of the same lands: the checks would notice."""
    gate = Gate()
    stale = await open_replica(work(gate.run))
    token = await stale.start("run", callback=callback())
    await until(lambda: gate.ran["wait"] == 1)
    stale.freeze()
    other = await open_replica(work(gate.run)) if overtaken else stale
    if overtaken:
        await until(lambda: gate.ran["wait"] == 2)
        assert (await other.stored(token)).owner == other.lease.id
    journal = [e.key for e in await stale.journal(token)]

    written = await stale.database.write(AppendJournal(token, 1, entry("stale#1")))
    ended = await stale.database.write(finish(token, 1, stale.lease.id))

    stored = await stale.stored(token)
    keys = [e.key for e in await stale.journal(token)]
    frozen = [row[3] for row in await stale.database.fetch(CALLBACKS_OF, {"token": token})]
    if overtaken:
        assert (written, ended) == (False, None)
        assert (stored.state, keys, frozen) == (State.RUNNING, journal, ["registered"])
        gate.may_go_on.set()
        assert await other.result(token) == ["first", "last"]
        await until(lambda: other.sender.posts)
        assert stale.sender.posts == []
    else:
        assert written
        assert ended is not None
        assert (stored.state, len(ended)) == (State.SUCCEEDED, 1)
        assert (sorted(keys), frozen) == (sorted([*journal, "stale#1"]), ["in_flight"])


_HELD = 1
_WAIT_FOR_LOCK = Statement(
    sa.select(
        sa.cast(sa.func.pg_advisory_xact_lock(sa.bindparam("held", type_=sa.BigInteger)), sa.String)
    )
)


@dataclass(frozen=True)
class SlowAppend:
    """A journal entry whose transaction stays open until a lock is released."""

    append: AppendJournal

    @property
    def subject(self) -> str | None:
        return self.append.subject

    async def apply(self, tx: Transaction) -> bool:
        answer = await self.append.apply(tx)
        await tx.fetch(_WAIT_FOR_LOCK, {"held": _HELD})
        return answer


async def test_nobody_takes_over_between_an_owners_write_and_its_commit(
    open_replica: OpenReplica, postgres_url: str
) -> None:
    gate = Gate()
    slow = await open_replica(work(gate.run))
    token, bystander = [await slow.start("run") for _ in range(2)]
    await until(lambda: gate.ran["wait"] == 2)
    holder = await asyncpg.connect(postgres_url)
    try:
        await holder.execute(f"SELECT pg_advisory_lock({_HELD})")
        writing = slow.database.write(SlowAppend(AppendJournal(token, 1, entry("slow#1"))))
        slow.freeze()

        async def is_held() -> bool:
            asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return bool(await holder.fetchval(asked))

        await until_found(is_held)
        other = await open_replica(work(gate.run))
        await until(lambda: gate.ran["wait"] == 3)
        assert (await other.stored(bystander)).epoch == 2
        assert (await other.stored(token)).epoch == 1
    finally:
        await holder.close()
    assert await writing

    async def is_taken_over() -> bool:
        return (await other.stored(token)).state is State.PAUSED

    await until_found(is_taken_over)
    # What was loaded after the claim has all that the other wrote, which is not this code's.
    assert "slow#1" in str((await other.stored(token)).pause_reason)


async def test_a_process_that_lost_its_lease_leaves_its_operations_alone(
    open_replica: OpenReplica,
) -> None:
    gate = Gate()
    stopped = await open_replica(work(gate.run))
    other = await open_replica(work(gate.run))
    token = await stopped.start("run")
    await until(lambda: gate.ran["wait"] == 1)
    # As when the process could not run, or not reach the database, for longer than the lease.
    for task in stopped.lease._tasks:
        task.cancel()
    await until(lambda: gate.ran["wait"] == 2)
    stopped.lose_lease()
    assert stopped.engine.live == 0
    gate.may_go_on.set()
    assert await other.result(token) == ["first", "last"]
    assert gate.ran == {"first": 1, "wait": 2, "last": 1}
    assert (await other.stored(token)).epoch == 2


async def test_a_wait_hears_of_an_end_after_the_operation_has_moved(
    open_replica: OpenReplica,
) -> None:
    gate = Gate()
    one = await open_replica(work(gate.run))
    other = await open_replica(work(gate.run))
    token = await one.start("run")
    await until(lambda: gate.ran["wait"] == 1)
    waiting = asyncio.ensure_future(one.engine.result(key("run"), token, 10.0))
    one.freeze()
    one.engine._runner.abandon_all()
    await until(lambda: gate.ran["wait"] == 2)
    gate.may_go_on.set()
    answer = await waiting
    assert isinstance(answer, Succeeded)
    assert (await other.stored(token)).epoch == 2


async def test_sleepers_wake_wherever_somebody_is_alive(open_replica: OpenReplica) -> None:
    async def body(ctx: DurableContext, input: Any) -> str:
        await ctx.sleep(timedelta(seconds=1))
        return "awake"

    settings = EngineSettings(suspend_after_seconds=0.05)
    gone = await open_replica(work(body), settings=settings)
    other = await open_replica(work(body), settings=settings)
    token = await gone.start("run")

    async def is_suspended() -> bool:
        return (await other.stored(token)).state is State.READY

    await until_found(is_suspended)
    await gone.lose()
    assert await other.result(token) == "awake"
    assert (await other.stored(token)).losses == 0
