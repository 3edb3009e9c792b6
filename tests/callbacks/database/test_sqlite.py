import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import (
    DatabaseClosed,
    DatabaseError,
    DatabaseInUse,
    GroupCommit,
    InvalidDatabaseUrl,
    SqliteDatabase,
    Statement,
    Transaction,
    Write,
    persist,
    sqlite_path,
)
from callbacks.database.sqlite import connect, prepare_file

pytestmark = pytest.mark.anyio

_meta = sa.MetaData()
_table = sa.Table("t", _meta, sa.Column("a", sa.Integer, primary_key=True))
INSERT = Statement(sa.insert(_table).values(a=sa.bindparam("a")))
ALL = Statement(sa.select(_table.c.a).order_by(_table.c.a))


@dataclass
class Insert:
    a: Any
    error: BaseException | None = None
    runs: int = 0
    subject = None

    async def apply(self, tx: Transaction) -> int:
        self.runs += 1
        changed = await tx.execute(INSERT, {"a": self.a})
        if self.error is not None:
            raise self.error
        return changed


@pytest.fixture
async def database(tmp_path: Path) -> Any:
    path = tmp_path / "some" / "folder" / "x.db"
    opened = SqliteDatabase(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    connection.close()
    yield opened
    opened.close()


async def test_what_one_turn_queues_is_one_transaction(database: SqliteDatabase) -> None:
    answers = await asyncio.gather(*(database.write(Insert(n)) for n in range(300)))
    assert list(answers) == [1] * 300
    assert (database.batches, database.writes) == (2, 300)
    assert len(await database.fetch(ALL, {})) == 300


async def test_one_bad_write_does_not_fail_its_batch(database: SqliteDatabase) -> None:
    writes = [Insert(1), Insert(2, ValueError("bad")), Insert(1), Insert("\udcff"), Insert(3)]
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == [
        "int", "ValueError", "IntegrityError", "UnicodeEncodeError", "int",
    ]  # fmt: skip
    assert await database.fetch(ALL, {}) == [(1,), (3,)]
    alone = await asyncio.gather(database.write(Insert(1)), return_exceptions=True)
    assert isinstance(alone[0], sqlite3.IntegrityError)


async def test_a_disk_that_is_full_fails_all_and_recovers(database: SqliteDatabase) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    writes = [Insert(1), Insert(2, full), Insert(3)]
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    assert answers == [full] * 3
    assert [write.runs for write in writes] == [1, 1, 0]
    assert await database.fetch(ALL, {}) == []
    assert await database.write(Insert(1)) == 1


async def test_a_cancelled_caller_does_not_lose_its_write(database: SqliteDatabase) -> None:
    writes = [database.write(Insert(n)) for n in range(3)]
    writes[1].cancel()
    assert [await writes[0], await writes[2]] == [1, 1]
    assert await database.fetch(ALL, {}) == [(0,), (1,), (2,)]


async def test_close_commits_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    database = SqliteDatabase(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    waiting = [database.write(Insert(n)) for n in range(600)]
    database.close()
    assert await asyncio.gather(*waiting) == [1] * 600
    with pytest.raises(DatabaseClosed):
        await database.write(Insert(1))
    with pytest.raises(DatabaseClosed):
        await persist(database, Insert(1))
    with pytest.raises(DatabaseClosed):
        await database.fetch(ALL, {})
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (600,)
    connection.close()
    SqliteDatabase(path).close()  # the lock is free again


async def test_a_second_gateway_is_refused(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "x.db")
    with pytest.raises(DatabaseInUse, match="served by another gateway"):
        SqliteDatabase(tmp_path / "x.db")
    database.close()


async def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database " * 100)
    for path in (tmp_path / "file", tmp_path / "file" / "x.db"):
        for _ in range(2):  # the lock is given back
            with pytest.raises(DatabaseError, match="cannot open"):
                SqliteDatabase(path)
    with pytest.raises(DatabaseError, match="cannot open"):
        connect(tmp_path)


async def test_persist_waits_for_the_database(database: SqliteDatabase) -> None:
    class Refusing:
        def __init__(self) -> None:
            self.times = 2

        def write(self, write: Write[Any]) -> asyncio.Future[Any]:
            self.times -= 1
            if self.times < 0:
                return database.write(write)
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(sqlite3.OperationalError("disk full"))
            return refused

    assert await persist(Refusing(), Insert(1)) == 1
    # Giving up the wait does not give up the write.
    giving_up = asyncio.ensure_future(persist(database, Insert(2)))
    await asyncio.sleep(0)
    giving_up.cancel()
    await asyncio.gather(giving_up, return_exceptions=True)
    assert await database.fetch(ALL, {}) == [(1,), (2,)]


async def test_a_commit_that_breaks_fails_its_batch_only() -> None:
    calls: Iterator[int] = iter(range(9))

    def commit(writes: Sequence[Write[Any]]) -> list[Any]:
        if next(calls) == 0:
            raise RuntimeError("broken")
        return [len(writes)] * len(writes)

    group = GroupCommit(commit, most=2)
    answers = await asyncio.gather(
        *(group.write(Insert(n)) for n in range(5)), return_exceptions=True
    )
    assert [str(answer) for answer in answers] == ["broken", "broken", "2", "2", "1"]
    group.close()


def test_statements_know_literals_from_parameters() -> None:
    table = sa.Table(
        "s", sa.MetaData(), sa.Column("a", sa.String), sa.Column("n", sa.Integer), sa.Column("b")
    )
    statement = Statement(
        sa.update(table)
        .where(table.c.a == sa.bindparam("given"), table.c.n == 7)
        .values(a="it's", n=sa.bindparam("new"), b=None)
    )
    assert statement.sql == "UPDATE s SET a='it''s', n=:new, b=NULL WHERE s.a = :given AND s.n = 7"
    assert repr(statement).startswith("Statement('UPDATE s") or "UPDATE s" in repr(statement)
    with pytest.raises(TypeError, match="bind it"):
        Statement(sa.select(table).where(table.c.a == b"bytes"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///data/nexus.db", "data/nexus.db"),
        ("sqlite:////var/x%20y.db?mode=rw", "/var/x y.db"),
    ],
)
def test_urls(url: str, path: str) -> None:
    assert sqlite_path(url) == Path(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/d", "use sqlite:///data/nexus.db"),
        ("mysql://u:p@h/d", r"'mysql://...@h/d' is not a database URL"),
        ("sqlite:///", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
    ],
)
def test_bad_urls(url: str, message: str) -> None:
    with pytest.raises(InvalidDatabaseUrl, match=message):
        sqlite_path(url)


def test_the_file_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "private.db"
    connection = connect(path)
    connection.execute("CREATE TABLE t (x)")
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    connection.close()
    assert modes
    assert set(modes.values()) == {0o600}


def test_a_file_that_is_there_keeps_its_locks(tmp_path: Path) -> None:
    # What is opened and closed beside SQLite takes SQLite's locks along.
    path = tmp_path / "held.db"
    connection = connect(path)
    connection.execute("CREATE TABLE t (x)")
    prepare_file(path)
    write = (
        "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES(1)')"
    )
    program = f"{write}; c.commit(); c.close()"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.with_name("held.db-wal").exists()
    assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]
    connection.close()
