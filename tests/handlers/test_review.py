"""Words from outside that come while an operation changes hands: none of them is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import SqliteDatabase, Write, open_database
from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.records import State
from handlers.store.ending import Finish
from handlers.store.journals import LOAD_JOURNAL, AppendJournal, JournalEntry, read_entry
from handlers.store.operations import operation
from handlers.store.outside import RequestCancel
from handlers.store.running import pause
from tests.callbacks.office import FixedTerms
from tests.handlers.test_claims import Run, echo
from tests.handlers.test_poison import Deadly, crashed
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


def cancel_after(world: World, kind: str, token: str) -> None:
    """Have a cancel committed right behind the next write of a kind, as another process would."""
    once = [kind]
    asked: list[asyncio.Future[bool]] = []

    def ask() -> None:
        asked.append(world.database.write(RequestCancel(token, world.clock.now_ms())))

    def look(write: Write[Any]) -> None:
        if type(write).__name__ in once:
            once.clear()
            asyncio.get_running_loop().call_soon(ask)

    world.database.refuses = look


def is_pause(write: Write[Any]) -> bool:
    """Whether a write pauses an operation."""
    return type(write).__name__ == "Pause" or "new_reason" in getattr(write, "values", {})


async def test_a_cancel_right_after_a_claim_interrupts_what_was_claimed(
    open_world: OpenWorld,
) -> None:
    """Word of it comes before the operation is in memory, and nothing else brings it up."""

    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def nap(ctx: DurableContext, input: Any) -> None:
        await ctx.sleep(timedelta(seconds=0.3))
        await ctx.step(for_ever)

    world = await open_world(work(nap), settings=EngineSettings(suspend_after_seconds=0.05))
    token = await world.start("run")
    await world.suspended(token)
    cancel_after(world, "ClaimDue", token)
    stored = await world.ended(token, 3)
    assert stored.state is State.CANCELED


@pytest.mark.parametrize("turns", range(10))
async def test_a_cancel_while_an_operation_is_being_paused_ends_it(
    open_world: OpenWorld, turns: int
) -> None:
    """Who cancels may see an operation that runs, and who pauses it hear of the cancel too late."""
    asking: list[asyncio.Task[None]] = []
    changed = False

    async def code(ctx: DurableContext, input: Any) -> None:
        if changed:
            asking.append(asyncio.create_task(world.cancel(token)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await ctx.step(len, [])
        await ctx.sleep(HOUR)

    world = await open_world(work(code))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.kill()
    changed = True
    await world.open()
    assert (await world.ended(token, 3)).state is State.CANCELED
    await asyncio.gather(*asking)


async def test_a_cancel_that_is_recorded_just_before_a_pause_ends_the_operation(
    open_world: OpenWorld,
) -> None:
    """Another process asked, saw an operation that runs, and its word comes after the pause."""
    changed = False

    async def code(ctx: DurableContext, input: Any) -> None:
        if changed:
            await ctx.step(len, [])
        await ctx.sleep(HOUR)

    world = await open_world(work(code))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.kill()
    changed = True
    asked: list[asyncio.Future[bool]] = []

    def ask(write: Write[Any]) -> None:
        if getattr(write, "token", None) == token and not asked and is_pause(write):
            cancel = RequestCancel(token, world.clock.now_ms())
            asked.append(SqliteDatabase.write(world.database, cancel))

    await world.open()
    world.database.refuses = ask
    assert (await world.ended(token, 3)).state is State.CANCELED
    assert asked


async def test_a_poisoned_operation_whose_cancel_was_asked_for_ends(
    open_world: OpenWorld,
) -> None:
    """It is to end anyway, and its code cannot be trusted to end it."""
    deadly = Deadly()
    world = await open_world(work(deadly.run), settings=EngineSettings(poison_after=1))
    token = await world.start("run", "culprit")
    await asyncio.wait_for(deadly.died.wait(), 10)
    await world.database.write(RequestCancel(token, world.clock.now_ms()))
    await crashed(world, deadly)
    assert (await world.ended(token, 3)).state is State.CANCELED


async def test_cancelling_again_ends_what_was_paused_meanwhile(open_world: OpenWorld) -> None:
    """The first cancel came before the pause and had no effect; the second one is not ignored."""
    world = await open_world(work(echo))
    token = await world.start("run")
    await world.ended(token)
    running = sa.update(operation).values(
        state="paused", closed_at=None, expires_at=None, cancel_requested_at=1
    )
    await world.database.write(Run(running))
    await world.cancel(token)
    assert (await world.stored(token)).state is State.CANCELED


# ---------------------------------------------------------------- one transaction


_ROW = sa.insert(operation).values(
    token=sa.bindparam("token"),
    endpoint="default",
    service="Work",
    operation="run",
    caller="",
    request_id=sa.bindparam("request_id"),
    input_hash=sa.bindparam("empty"),
    input=sa.bindparam("empty"),
    content_headers="{}",
    headers="{}",
    state="running",
    owner="me",
    epoch=1,
    wake_seq=0,
    attempts=0,
    losses=0,
    watched=0,
    links="[]",
    handler_links="[]",
    created_at=0,
)


async def test_a_step_that_was_done_before_a_pause_is_recorded_in_one_transaction_with_it(
    postgres_url: str,
) -> None:
    """The pauses of a batch run together, at the place of the first of them."""
    database = await open_database(postgres_url)
    try:
        for token in ("a", "b"):
            await database.write(Run(_ROW, token=token, request_id=token, empty=b""))
        entry = JournalEntry("1/step#1", 1, "step", None, b"1", None, None, 1, None, 0)
        before = database.batches
        answers: Any = await asyncio.gather(
            database.write(pause("a", 1, "changed")),
            database.write(AppendJournal("b", 1, entry)),
            database.write(pause("b", 1, "changed")),
            database.write(AppendJournal("b", 0, entry)),
        )
        assert database.batches == before + 1
        assert answers == [False, True, False, False]
        rows = await database.fetch(LOAD_JOURNAL, {"token": "b"})
        assert [read_entry(row) for row in rows] == [entry]
    finally:
        await database.aclose()


async def test_what_is_recorded_before_an_end_is_recorded_in_one_transaction_with_it(
    postgres_url: str,
) -> None:
    """What a handler owes as it returns: the ends of a batch run together, before it or after."""
    database = await open_database(postgres_url)

    def end(token: str) -> Finish:
        return Finish(
            token=token,
            epoch=1,
            state=State.SUCCEEDED,
            output=b"1",
            output_headers="{}",
            failure=None,
            error_detail=None,
            completion=lambda: ([], b""),
            now=1,
            retention_ms=1,
            terms=FixedTerms(),
        )

    try:
        for token in ("a", "b"):
            await database.write(Run(_ROW, token=token, request_id=token, empty=b""))
        entry = JournalEntry("step#1.cancelled", 1, "cancelled", None, b"", None, None, 1, None, 0)
        before = database.batches
        answers: Any = await asyncio.gather(
            database.write(end("a")),
            database.write(AppendJournal("b", 1, entry)),
            database.write(end("b")),
        )
        assert database.batches == before + 1
        assert answers == [[], True, []]
    finally:
        await database.aclose()
