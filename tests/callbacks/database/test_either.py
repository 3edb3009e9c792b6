"""What holds on SQLite and on PostgreSQL alike."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import (
    Database,
    DatabaseClosed,
    Statement,
    Transaction,
    Write,
    open_database,
    persist,
)
from tests.callbacks.database.conftest import ALL, INSERT, Insert, things
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

_COUNT = Statement(sa.select(sa.func.count()).select_from(things))
_RENAME = Statement(
    sa.update(things).where(things.c.a == sa.bindparam("which")).values(b=sa.bindparam("new_b"))
)


@dataclass
class Notify:
    what: tuple[tuple[str, str], ...]
    error: Exception | None = None
    subject: str | None = None

    async def apply(self, tx: Transaction) -> None:
        for channel, payload in self.what:
            await tx.notify(channel, payload)
        if self.error is not None:
            raise self.error


@dataclass
class Count:
    """Reads, and then fails where it is told to."""

    error: Exception | None = None
    subject: str | None = None

    async def apply(self, tx: Transaction) -> Any:
        rows = await tx.fetch(_COUNT, {})
        if self.error is not None:
            raise self.error
        return rows[0][0]


class Heard:
    """What a database notified, in order."""

    def __init__(self, database: Database) -> None:
        self.all: list[tuple[str, str]] = []
        database.subscribe(lambda channel, payload: self.all.append((channel, payload)))

    async def until(self, last: tuple[str, str]) -> list[tuple[str, str]]:
        async def found() -> bool | None:
            return True if last in self.all else None

        await eventually(found)
        return self.all


async def test_what_one_turn_queues_is_one_transaction(database: Database) -> None:
    answers = await asyncio.gather(*(database.write(Insert(n)) for n in range(300)))
    assert list(answers) == [1] * 300
    assert (database.batches, database.writes) == (2, 300)
    assert len(await database.fetch(ALL, {})) == 300


async def test_what_is_queued_behind_a_commit_is_one_transaction(database: Database) -> None:
    first = database.write(Insert(0))
    await asyncio.sleep(0)
    later = [database.write(Insert(n)) for n in range(1, 100)]
    assert await first == 1
    assert await asyncio.gather(*later) == [1] * 99
    assert database.batches == 2


async def test_one_bad_write_does_not_fail_its_batch(database: Database) -> None:
    writes = [
        Insert(1, b="one"), Insert(2, ValueError("bad")), Insert(1), Insert(4, b="\udcff"),
        Insert("x" if database.dialect == "postgresql" else "\udcff"), Insert(3, b="thréé 🎈"),
    ]  # fmt: skip
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    assert [isinstance(answer, Exception) for answer in answers] == [
        False, True, True, True, True, False,
    ]  # fmt: skip
    assert isinstance(answers[1], ValueError)
    assert await database.fetch(ALL, {}) == [(1, "one"), (3, "thréé 🎈")]
    alone = await asyncio.gather(database.write(Insert(1)), return_exceptions=True)
    assert isinstance(alone[0], Exception)
    assert await database.write(Insert(5)) == 1


async def test_many_bad_writes_do_not_fail_their_batch(database: Database) -> None:
    writes = [Insert(n, ValueError(str(n)) if n % 3 else None) for n in range(60)]
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    for n, answer in enumerate(answers):
        assert str(answer) == (str(n) if n % 3 else "1")
    assert len(await database.fetch(ALL, {})) == 20


async def test_a_write_that_has_only_read_fails_alone(database: Database) -> None:
    writes: list[Write[Any]] = [Count(), Insert(1), Count(ValueError("no")), Insert(2)]
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    assert [str(answer) for answer in answers[1:]] == ["1", "no", "1"]


async def test_a_cancelled_caller_does_not_lose_its_write(database: Database) -> None:
    writes = [database.write(Insert(n)) for n in range(3)]
    writes[1].cancel()
    assert [await writes[0], await writes[2]] == [1, 1]
    assert [row[0] for row in await database.fetch(ALL, {})] == [0, 1, 2]


async def test_closing_commits_what_waits_and_refuses_what_comes(url: str) -> None:
    database = await open_database(url)
    waiting = [database.write(Insert(n)) for n in range(600)]
    closing = asyncio.ensure_future(database.aclose())
    assert await asyncio.gather(*waiting) == [1] * 600
    await closing
    with pytest.raises(DatabaseClosed):
        await database.write(Insert(1))
    with pytest.raises(DatabaseClosed):
        await persist(database, Insert(1))
    with pytest.raises(DatabaseClosed):
        await database.fetch(ALL, {})
    again = await open_database(url)
    assert len(await again.fetch(ALL, {})) == 600
    await again.aclose()


async def test_writes_of_one_subject_happen_in_their_order(database: Database) -> None:
    @dataclass
    class Append:
        text: str
        subject: str | None

        async def apply(self, tx: Transaction) -> str:
            rows = await tx.fetch(ALL, {})
            before = next((b for a, b in rows if str(a) == self.subject), None)
            if before is None:
                await tx.execute(INSERT, {"a": int(self.subject or 0), "b": self.text})
                return self.text
            after = f"{before}{self.text}"
            await tx.execute(_RENAME, {"which": int(self.subject or 0), "new_b": after})
            return after

    letters = "abcdefghij"
    answers = await asyncio.gather(
        *(database.write(Append(letter, subject)) for letter in letters for subject in "123")
    )
    assert answers[-3:] == [letters] * 3
    assert await database.fetch(ALL, {}) == [(1, letters), (2, letters), (3, letters)]


async def test_notifications_come_after_the_commit(database: Database) -> None:
    heard = Heard(database)
    seen: list[int] = []

    def failing(channel: str, payload: str) -> None:
        raise ValueError(channel)  # of no consequence to the others

    database.subscribe(failing)
    database.subscribe(lambda *_: seen.append(len(heard.all)))
    await database.write(Notify((("wake", "it's a token"), ("due", ""), ("due", ""))))
    await database.write(Notify((("last", "x"),)))
    assert await heard.until(("last", "x")) == [
        ("wake", "it's a token"), ("due", ""), ("last", "x"),
    ]  # fmt: skip
    assert len(seen) == 3


async def test_nothing_is_notified_of_what_is_rolled_back(database: Database) -> None:
    heard = Heard(database)
    writes: list[Write[Any]] = [
        Notify((("wake", "good"),)),
        Notify((("wake", "bad"),), ValueError("no")),
        Insert(1, ValueError("no, either")),
    ]
    await asyncio.gather(*(database.write(write) for write in writes), return_exceptions=True)
    await database.write(Notify((("last", ""),)))
    assert await heard.until(("last", "")) == [("wake", "good"), ("last", "")]


async def test_a_write_awaits_nothing_but_its_transaction(database: Database) -> None:
    class Sleep:
        subject = None

        async def apply(self, tx: Transaction) -> None:
            await asyncio.sleep(0)

    answers = await asyncio.gather(
        database.write(Insert(1)), database.write(Sleep()), return_exceptions=True
    )
    assert answers[0] == 1
    assert "nothing but its transaction" in str(answers[1])


_few = sa.select(things.c.a).where(things.c.a < sa.bindparam("below")).cte("few")
_RENAME_FEW = Statement(
    sa.update(things).where(things.c.a.in_(sa.select(_few.c.a))).values(b=sa.bindparam("new_b"))
)


@dataclass
class RenameFew:
    below: int
    subject: str | None = None

    async def apply(self, tx: Transaction) -> int:
        return await tx.execute(_RENAME_FEW, {"below": self.below, "new_b": "few"})


async def test_changes_through_a_common_table_expression_are_counted(database: Database) -> None:
    assert await database.write(RenameFew(10)) == 0
    await asyncio.gather(*(database.write(Insert(n)) for n in range(5)))
    assert [await database.write(RenameFew(below)) for below in (3, 0, 9)] == [3, 0, 5]
