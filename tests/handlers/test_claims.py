"""What is taken up, by whom and in which order: due, lapsed, lost replies, and never twice."""

import asyncio
import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from nexusrpc import HandlerError, HandlerErrorType

from callbacks.database import Statement, Transaction, Write
from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.records import State
from handlers.store import claims, deadlines, retention
from handlers.store.operations import operation
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, callback, error_of, key, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


class Run:
    """One statement, as a write."""

    subject = None

    def __init__(self, clause: Any, **params: Any) -> None:
        self._statement = Statement(clause)
        self._params = params

    async def apply(self, tx: Transaction) -> int:
        return await tx.execute(self._statement, self._params)


async def echo(ctx: DurableContext, input: Any) -> Any:
    return input


async def asleep(ctx: DurableContext, input: Any) -> Any:
    await ctx.sleep(HOUR)


# ---------------------------------------------------------------- starts


async def test_a_start_is_recorded_as_this_process_s(open_world: OpenWorld) -> None:
    world = await open_world(work(asleep))
    token = await world.start("run")
    stored = await world.stored(token)
    assert (stored.owner, stored.epoch, stored.losses) == (world.lease.id, 1, 0)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_start_that_the_database_refuses_is_tried_again(
    open_world: OpenWorld, times: int
) -> None:
    world = await open_world(work(echo))
    refusals = [OSError("busy")] * times
    world.database.refuses = lambda write: (
        refusals.pop() if type(write).__name__ == "RecordStart" and refusals else None
    )
    assert await world.result(await world.start("run", 7)) == 7


async def test_a_start_that_cannot_be_recorded_is_unavailable(open_world: OpenWorld) -> None:
    world = await open_world(work(echo))
    world.database.refuses = lambda write: (
        OSError("gone") if type(write).__name__ == "RecordStart" else None
    )
    began = time.monotonic()
    error = await error_of(world.engine.start(world.request("run")))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.UNAVAILABLE
    assert error.retryable
    assert time.monotonic() - began < 5


async def test_a_start_whose_reply_was_lost_is_answered_as_new(open_world: OpenWorld) -> None:
    world = await open_world(work(echo))
    lost = loses_replies(world, "RecordStart", times=1)
    token = await world.start("run", 5, callback=callback())
    assert lost == ["RecordStart"]
    assert await world.result(token) == 5
    assert (await world.stored(token)).epoch == 1
    assert len(await world.callbacks(token)) == 1
    await until(lambda: len(world.sender.posts) == 1)


async def test_a_start_that_landed_though_it_was_refused_runs_all_the_same(
    open_world: OpenWorld,
) -> None:
    world = await open_world(work(echo))
    lost = loses_replies(world, "RecordStart", times=100)
    error = await error_of(world.engine.start(asked := world.request("run", 5)))
    assert isinstance(error, HandlerError)
    lost.extend(["enough"] * 100)
    await world.something_was_missed()
    repeated = await world.engine.start(replace(asked, wait_seconds=10.0))
    assert world.engine.stats.claimed == {"own": 1}
    assert repeated.content.data == b"5"  # type: ignore[union-attr]


def loses_replies(world: World, name: str, *, times: int) -> list[str]:
    """Have so many writes of a kind land and their writer told that they failed."""
    lost: list[str] = []

    def is_lost(write: Write[Any]) -> bool:
        if type(write).__name__ != name or len(lost) >= times:
            return False
        lost.append(name)
        return True

    world.database.loses_reply = is_lost
    return lost


async def test_an_end_whose_reply_was_lost_delivers_once(open_world: OpenWorld) -> None:
    world = await open_world(work(echo))
    lost = loses_replies(world, "Finish", times=1)
    token = await world.start("run", 5, callback=callback())
    assert await world.result(token) == 5
    await world.delivered(token)
    assert lost == ["Finish"]
    assert len(world.sender.posts) == 1
    assert world.engine.stats.ended.total() == 1


# ---------------------------------------------------------------- recovery


async def test_what_is_not_served_neither_runs_nor_keeps_others_waiting(
    open_world: OpenWorld,
) -> None:
    world = await open_world(work(asleep), settings=EngineSettings(claim_batch=2))
    unserved = [await world.start("run") for _ in range(7)]
    await world.kill()
    await world.open()
    await world.database.write(
        Run(
            sa.update(operation).values(
                service="Gone", state=State.READY.value, run_at=1, owner=None
            )
        )
    )
    await world.kill()
    world.services = [work(echo)]
    await world.open()
    token = await world.start("run", 1)
    await world.kill()
    await world.open()
    assert await world.result(token) == 1
    assert {(await world.stored(t)).state for t in unserved} == {State.READY}


async def test_an_operator_cancels_what_nobody_serves(open_world: OpenWorld) -> None:
    world = await open_world(work(asleep))
    token = await world.start("run", callback=callback())
    await world.kill()
    world.services = []
    await world.open()
    stored = await world.engine.cancel_by_operator(token)
    assert stored.state is State.CANCELED
    await world.delivered(token)


async def test_a_sleeper_wakes_for_its_deadline_and_cleans_up(open_world: OpenWorld) -> None:
    cleaned_up: list[str] = []

    async def refund() -> None:
        cleaned_up.append("refund")

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        except asyncio.CancelledError:
            await ctx.step(refund)
            raise

    world = await open_world(work(body), settings=EngineSettings(suspend_after_seconds=0.01))
    token = await world.start("run", operation_timeout=timedelta(seconds=1))
    await until(lambda: world.engine.live == 0)
    assert (await world.stored(token)).state is State.READY
    assert await world.failure(token) == ("failed", "operation timed out")
    assert cleaned_up == ["refund"]


async def test_only_what_is_paused_is_resumed_and_once(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> str:
        ran["run"] += 1
        await ctx.step(gate.wait, name="gate")
        return "done"

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: ran["run"] == 1)
    stored = await world.stored(token)
    await world.kill()
    await world.open()
    await until(lambda: ran["run"] == 2)
    await world.database.write(
        Run(sa.update(operation).values(state=State.PAUSED.value, owner=None, losses=4))
    )
    world.engine._runner.abandon_all()
    resumed = await asyncio.gather(
        *(world.engine.resume(token) for _ in range(3)), return_exceptions=True
    )
    refused = [answer for answer in resumed if isinstance(answer, HandlerError)]
    assert [error.type for error in refused] == [HandlerErrorType.CONFLICT] * 2
    gate.set()
    assert await world.result(token) == "done"
    assert ran["run"] == 3
    stored = await world.stored(token)
    assert (stored.losses, stored.owner) == (0, None)


async def test_a_backlog_is_taken_up_while_new_starts_are_answered(open_world: OpenWorld) -> None:
    ran: Counter[int] = Counter()

    async def count(number: int) -> int:
        ran[number] += 1
        return number

    async def body(ctx: DurableContext, input: int) -> int:
        return await ctx.step(count, await ctx.step(count, input))

    world = await open_world(work(body))
    token = await world.start("run", 0)
    await world.ended(token)
    names = [column.name for column in operation.columns]
    copied = [operation.c[name] for name in names if name not in ("token", "request_id", "state")]
    numbers = sa.text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "SELECT i FROM n"
    ).columns(sa.column("i", sa.Integer)).subquery()  # fmt: skip
    await world.database.write(
        Run(
            sa.insert(operation).from_select(
                ["token", "request_id", "state", *(column.name for column in copied)],
                sa.select(
                    sa.literal_column("'t' || n.i"),
                    sa.literal_column("'q' || n.i"),
                    sa.literal_column("'running'"),
                    *copied,
                ).select_from(operation.join(numbers.alias("n"), sa.true())),
            )
        )
    )
    await world.database.write(
        Run(sa.update(operation).where(operation.c.token != token).values(owner="gone"))
    )
    await world.kill()
    ran.clear()
    # By what this process works meanwhile: others may keep the machine busy.
    began = time.process_time()
    await world.open()
    opened = time.process_time() - began
    slowest = 0.0
    while ran[0] < 10_000:
        asked = time.process_time()
        await world.start("run", 1)
        slowest = max(slowest, time.process_time() - asked)
        await asyncio.sleep(0.01)

    async def all_ended() -> bool:
        count = Statement(sa.select(sa.func.count()).where(operation.c.closed_at.is_(None)))
        return [row[0] for row in await world.database.fetch(count, {})] == [0]

    await until_found(all_ended, 30)
    assert opened < 1
    assert slowest < 1
    assert ran[0] == 10_000
    assert await world.engine.state(key("run"), "t5000") == "succeeded"


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (claims._SOME_DUE, "operation_due"),
        (claims.NEXT_DUE, "operation_due"),
        (claims._SOME_LAPSED, "operation_owned"),
        (claims._SUSPECTS, "operation_owned"),
        (claims.GONE_OWNERS, "operation_owned"),
        (claims.OWNED, "operation_owned"),
        (claims._CLAIM_DUE, "sqlite_autoindex_operation_1"),
        (claims._CLAIM_LAPSED, "sqlite_autoindex_operation_1"),
        (deadlines.PAST_DEADLINE, "operation_deadline"),
        (deadlines.NEXT_DEADLINE, "operation_deadline"),
        (retention._EXPIRED, "operation_expiry"),
        (retention.NEXT_EXPIRY, "operation_expiry"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_no_look_reads_what_it_does_not_take(
    open_world: OpenWorld, statement: Statement, index: str
) -> None:
    world = await open_world(work(echo))
    params = dict.fromkeys(re.findall(r":(\w+)", statement.sql))
    with contextlib.closing(sqlite3.connect(world.path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", params).fetchall()
    [used] = [row[3] for row in plan if re.match(r"(SEARCH|SCAN) operation\b", row[3])]
    assert f"INDEX {index}" in used
