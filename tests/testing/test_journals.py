"""Stored operations replay on the code that wrote them, and what changed shows before a deploy."""

import asyncio
import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callbacks.database import DatabaseError
from handlers import DurableContext
from handlers.testing import (
    JournalsDiverge,
    Run,
    TestGateway,
    assert_journals_replay,
    check_journals,
)
from tests.testing.orders import RUN, work

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


class Counted:
    """A step that counts how often it ran."""

    def __init__(self) -> None:
        self.ran = 0

    async def note(self, value: str) -> str:
        self.ran += 1
        return value


async def store(folder: Path, handler: Any, *, ended: bool = False, **options: Any) -> Path:
    """Let an operation go as far as it can, and return a copy of its database."""
    async with TestGateway([work(handler, **options)]) as gateway:
        run: Run[Any] = await gateway.start(RUN, {"n": 1})
        await run.until_waiting()
        if ended:
            await run.result()
        return copy(gateway, folder)


def copy(gateway: TestGateway, folder: Path) -> Path:
    for file in gateway.database.parent.glob(f"{gateway.database.name}*"):
        shutil.copy(file, folder / file.name)
    return folder / gateway.database.name


counted = Counted()


async def original(ctx: DurableContext, input: Any) -> str:
    await ctx.step(counted.note, "a")
    await ctx.gather(ctx.step(counted.note, "b"), ctx.sleep(HOUR))
    await ctx.step(counted.note, "c")
    return await ctx.wait_for("approval", str)


async def other_arguments(ctx: DurableContext, input: Any) -> None:
    await ctx.step(counted.note, "A")


async def other_step(ctx: DurableContext, input: Any) -> None:
    await ctx.step(str, "a")


async def other_kind(ctx: DurableContext, input: Any) -> None:
    await ctx.step(counted.note, "a")
    await ctx.gather(ctx.step(counted.note, "b"), ctx.step(counted.note, "c"))


async def ends_before(ctx: DurableContext, input: Any) -> None:
    pass


async def swallows_everything(ctx: DurableContext, input: Any) -> None:
    with suppress(BaseException):  # what a handler must not do, and one day does
        await ctx.step(counted.note, "A")


async def fails(ctx: DurableContext, input: Any) -> None:
    await ctx.step(counted.note, "a")
    raise KeyError(input["n"])


async def adds_a_step_guarded(ctx: DurableContext, input: Any) -> str:
    await ctx.step(counted.note, "a")
    if await ctx.patched("one more"):
        await ctx.step(counted.note, "new")
    await ctx.gather(ctx.step(counted.note, "b"), ctx.sleep(HOUR))
    return await ctx.step(counted.note, "other from here on")


async def hangs(ctx: DurableContext, input: Any) -> None:
    await asyncio.Event().wait()


async def test_what_is_stored_replays_on_its_own_code(tmp_path: Path) -> None:
    database = await store(tmp_path, original)
    before = counted.ran
    [check] = await check_journals([work(original)], database)
    assert check.replays
    assert (check.service, check.operation, check.message) == ("Work", "run", "")
    assert counted.ran == before
    await assert_journals_replay([work(original)], f"sqlite:///{database}")


async def test_a_change_behind_what_is_recorded_replays(tmp_path: Path) -> None:
    database = await store(tmp_path, original)
    await assert_journals_replay([work(adds_a_step_guarded)], database)


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (other_arguments, r"'note#1' was recorded with other arguments"),
        (other_step, r"the journal has step 'note#1' .* the code now asks for step 'str#1'"),
        (other_kind, r"'2/sleep#1'"),
        (ends_before, r"ended without asking for .*"),
        (swallows_everything, r"other arguments"),
        (fails, r"the handler fails on what is recorded: (.|\n)*KeyError: 1"),
        (hangs, r"awaited something for 0.05 s that is no call of its context"),
    ],
)
async def test_a_change_before_it_is_told(handler: Any, told: str, tmp_path: Path) -> None:
    database = await store(tmp_path, original)
    before = counted.ran
    with pytest.raises(JournalsDiverge, match=rf"1 of 1 operations do not replay(.|\n)*{told}"):
        await assert_journals_replay([work(handler)], database, patience=0.05)
    assert counted.ran == before


async def test_an_operation_that_nobody_serves_any_more_is_told(tmp_path: Path) -> None:
    database = await store(tmp_path, original)
    [check] = await check_journals([], database)
    assert not check.replays
    assert check.message == "no handler serves it any more"


async def test_ended_operations_are_asked_for(tmp_path: Path) -> None:
    async def handler(ctx: DurableContext, input: Any) -> str:
        return await ctx.step(str, "a")

    database = await store(tmp_path, handler, ended=True)
    assert await check_journals([work(handler)], database) == []
    [check] = await check_journals([work(handler)], database, ended=True)
    assert (check.state, check.replays) == ("succeeded", True)
    [check] = await check_journals([work(other_arguments)], database, ended=True)
    assert not check.replays


async def test_an_operation_that_was_canceled_replays_its_cleanup(tmp_path: Path) -> None:
    async def handler(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(str, "refund")

    async def other(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(str, "keep")

    async with TestGateway([work(handler)]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until(step="sleep#1")
        await run.cancel()
        await gateway.settle()
        database = copy(gateway, tmp_path)
    [check] = await check_journals([work(handler)], database, ended=True)
    assert (check.state, check.replays, check.message) == ("canceled", True, "")
    [check] = await check_journals([work(other)], database, ended=True)
    assert not check.replays


async def test_a_cancel_that_the_handler_has_not_seen_does_not_hide_a_change(
    tmp_path: Path,
) -> None:
    async with TestGateway([work(original, timeout=timedelta(minutes=1))]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until_waiting()
        database = copy(gateway, tmp_path)
    # Years ago, by the clock of this machine, is its deadline of 2030; either way it is checked.
    await assert_journals_replay([work(original)], database)
    assert not (await check_journals([work(other_arguments)], database))[0].replays


async def test_a_database_is_left_as_it_is(tmp_path: Path) -> None:
    database = await store(tmp_path, original)
    await check_journals([work(original)], database)
    with pytest.raises(DatabaseError, match="cannot open"):
        await check_journals([work(original)], tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


async def test_a_database_that_is_too_old_is_told(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.write_bytes(b"")
    with pytest.raises(DatabaseError, match="database migrate"):
        await check_journals([work(original)], path)
