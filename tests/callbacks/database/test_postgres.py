"""What only PostgreSQL does: connections are lost, servers restart, others lock rows."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from callbacks.database import (
    ALONE,
    Database,
    DatabaseError,
    DatabaseUnavailable,
    InvalidDatabaseUrl,
    OutcomeUnknown,
    Statement,
    Transaction,
    check_url,
    open_database,
    persist,
    shown_database,
)
from callbacks.database.postgres import PostgresDatabase
from callbacks.database.postgres_connections import watched
from tests.callbacks.database.conftest import ALL, INSERT, Insert, things
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

_SLEEP = Statement(sa.select(sa.func.pg_sleep(sa.bindparam("seconds", type_=sa.Float))))
_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Sleep:
    """Inserts, and then sleeps in the middle of its transaction."""

    subject = None

    def __init__(self, a: int, seconds: float) -> None:
        self.a = a
        self.seconds = seconds

    async def apply(self, tx: Transaction) -> None:
        await tx.execute(INSERT, {"a": self.a, "b": "slept"})
        await tx.fetch(_SLEEP, {"seconds": self.seconds})


@pytest.fixture
async def database(things_url: str) -> AsyncIterator[PostgresDatabase]:
    opened = await PostgresDatabase.open(things_url)
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(things_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(things_url)
    yield connection
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.close()


async def until_busy(other: Any, what: str, wait: str = "%") -> None:
    async def busy() -> bool | None:
        rows = await other.fetch(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND query LIKE $1 AND state = 'active' "
            "AND coalesce(wait_event_type, '') LIKE $2",
            what,
            wait,
        )
        return True if rows else None

    await eventually(busy)


async def test_a_connection_that_is_killed_fails_its_batch_and_is_made_again(
    database: Database, other: Any
) -> None:
    heard: list[tuple[str, str]] = []
    database.subscribe(lambda channel, payload: heard.append((channel, payload)))
    writes = [database.write(Sleep(n, 20)) for n in range(3)]
    await until_busy(other, "%pg_sleep%")
    assert len(await other.fetch(_OTHERS)) >= 2
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 3
    assert "lost the connection to PostgreSQL at 127.0.0.1" in str(answers[0])
    assert await persist(database, Insert(1)) == 1
    assert await database.fetch(ALL, {}) == [(1, "")]

    async def told() -> bool | None:
        return True if ("", "") in heard else None

    await eventually(told)


async def test_queries_survive_that_their_connections_are_killed(
    database: Database, other: Any
) -> None:
    await asyncio.gather(*(database.fetch(ALL, {}) for _ in range(10)))
    await other.fetch(_OTHERS)
    assert await asyncio.gather(*(database.fetch(ALL, {}) for _ in range(10))) == [[]] * 10


async def test_a_query_that_is_given_up_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await database.fetch(_SLEEP, {"seconds": 20})
    assert await asyncio.gather(*(database.fetch(ALL, {}) for _ in range(10))) == [[]] * 10


async def test_queries_change_nothing(database: Database) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await database.fetch(INSERT, {"a": 1, "b": ""})


async def test_a_commit_whose_answer_is_lost_is_of_unknown_outcome(
    database: Database, other: Any
) -> None:
    await other.execute("""
        CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(20); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER dozing AFTER INSERT ON thing
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION doze();
    """)
    write = database.write(Insert(1))
    await until_busy(other, "COMMIT%", "Timeout")
    await other.fetch(_OTHERS)
    with pytest.raises(OutcomeUnknown, match="during COMMIT"):
        await write


async def test_what_a_commit_refuses_is_told(database: Database, other: Any) -> None:
    await other.execute("ALTER TABLE thing ADD UNIQUE (b) DEFERRABLE INITIALLY DEFERRED")
    writes = [Insert(1, b="x"), Insert(2, b="y"), Insert(3, b="x")]
    answers = await asyncio.gather(*map(database.write, writes), return_exceptions=True)
    assert answers[:2] == [1, 1]
    assert isinstance(answers[2], asyncpg.UniqueViolationError)
    assert await database.fetch(ALL, {}) == [(1, "x"), (2, "y")]


async def test_the_server_restarts_in_the_middle(
    database: Database, postgres: PostgresServer
) -> None:
    acknowledged: list[int] = []
    stopped = asyncio.Event()

    async def write(first: int) -> None:
        n = first
        while not stopped.is_set():
            with contextlib.suppress(DatabaseError):
                await database.write(Insert(n))
                acknowledged.append(n)
            n += 10

    async with asyncio.TaskGroup() as group:
        for first in range(10):
            group.create_task(write(first))
        for _ in range(2):
            so_far = len(acknowledged)

            async def went_on(more: int = so_far + 50) -> bool | None:
                return True if len(acknowledged) > more else None

            await eventually(went_on)
            await asyncio.to_thread(postgres.restart)
        so_far = len(acknowledged)

        async def goes_on() -> bool | None:
            return True if len(acknowledged) > so_far else None

        await eventually(goes_on)
        stopped.set()
    there = {row[0] for row in await database.fetch(ALL, {})}
    assert set(acknowledged) <= there


async def test_a_server_that_stands_still_is_not_waited_for_forever(
    database: Database, postgres: PostgresServer, other: Any
) -> None:
    postgres.freeze()
    try:
        began = time.monotonic()
        async with watched(other, 0.5):
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await other.execute("SELECT 1")
        assert time.monotonic() - began < 5
        write = asyncio.ensure_future(persist(database, Insert(1)))
        await asyncio.wait([write], timeout=0.3)
        assert not write.done()
    finally:
        postgres.thaw()
    assert await write == 1


async def test_rows_that_another_locks_are_waited_for(database: Database, other: Any) -> None:
    await database.write(Insert(1))
    rename = Statement(
        sa.text("UPDATE thing SET b = :b WHERE a = :a").bindparams(
            sa.bindparam("a", type_=sa.Integer), sa.bindparam("b", type_=sa.String)
        )
    )

    class Rename:
        subject = None

        async def apply(self, tx: Transaction) -> int:
            return await tx.execute(rename, {"a": 1, "b": "mine"})

    async with other.transaction():
        await other.execute("UPDATE thing SET b = 'theirs' WHERE a = 1")
        write = database.write(Rename())
        await asyncio.wait([write], timeout=0.1)
        assert not write.done()
    assert await write == 1
    assert await database.fetch(ALL, {}) == [(1, "mine")]


async def test_two_processes_that_deadlock_both_get_their_writes_done(things_url: str) -> None:
    first = await open_database(things_url)
    second = await open_database(things_url)
    await asyncio.gather(*(first.write(Insert(n)) for n in range(2)))
    touch = Statement(
        sa.text("UPDATE thing SET b = b || 'x' WHERE a = :a").bindparams(
            sa.bindparam("a", type_=sa.Integer)
        )
    )

    class Both:
        subject = None

        def __init__(self, *order: int) -> None:
            self.order = order

        async def apply(self, tx: Transaction) -> None:
            for a in self.order:
                await tx.execute(touch, {"a": a})
                await tx.fetch(_SLEEP, {"seconds": 0.2})

    await asyncio.gather(first.write(Both(0, 1)), second.write(Both(1, 0)))
    assert await first.fetch(ALL, {}) == [(0, "xx"), (1, "xx")]
    await first.aclose()
    await second.aclose()


async def test_processes_hear_each_other(things_url: str) -> None:
    class Notify:
        subject = None

        async def apply(self, tx: Transaction) -> None:
            await tx.notify("wake", "token 1")

    first = await open_database(things_url)
    second = await open_database(things_url)
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    second.subscribe(lambda channel, payload: heard.put_nowait((channel, payload)))
    await first.write(Notify())
    async with asyncio.timeout(5):
        assert await heard.get() == ("wake", "token 1")
    await first.aclose()
    await second.aclose()


async def test_what_cannot_be_opened_says_why(postgres: PostgresServer) -> None:
    good = postgres.url("migrated")
    postgres.sql(postgres.url("postgres"), "DROP DATABASE IF EXISTS guarded")
    postgres.empty_database("guarded")
    guarded = postgres.url("guarded").replace("postgres@", "postgres:hunter2@")
    for url, message in (
        (good.replace(f":{postgres.port}", ":1"), r"cannot connect to PostgreSQL at 127.0.0.1:1"),
        (postgres.url("no_such"), "has no database 'no_such'; create it first"),
        (guarded, "refuses the user: password authentication failed"),
        (good.replace("127.0.0.1", "no-such-host.invalid"), "cannot connect to PostgreSQL at no-s"),
        (good.replace("migrated", "migrated?sslmode=certainly"), "cannot be used"),
    ):
        with pytest.raises(DatabaseError, match=message) as refused:
            await open_database(url)
        assert "hunter2" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_urls_are_checked_and_shown_without_passwords() -> None:
    for url in ("postgresql://u:p@h:5432/d", "postgres://h/d", "postgresql:///d?host=/tmp"):
        check_url(url)
    with pytest.raises(InvalidDatabaseUrl, match="is not a database URL") as refused:
        check_url("postgresql://u:secret@h:port/d")
    assert "secret" not in str(refused.value)
    assert shown_database("postgresql://u:s@cret@h:5432/d?password=x") == "postgresql://u@h:5432/d"
    assert shown_database("sqlite:///a/b.db") == "a/b.db"


class Again:
    """Writes the same as others at the same time; the trigger counts how often it is done."""

    subject = None

    def __init__(self, a: int, *, idempotent: bool) -> None:
        self._a = a
        self._statement = _ALIKE[idempotent]

    async def apply(self, tx: Transaction) -> int:
        return await tx.execute(self._statement, {"a": self._a})


_ALIKE = {
    idempotent: Statement(
        sa.update(things).where(things.c.a == sa.bindparam("a", type_=sa.Integer)).values(b="x"),
        idempotent=idempotent,
    )
    for idempotent in (True, False)
}


@pytest.mark.parametrize(("idempotent", "updates"), [(True, 2), (False, 6)])
async def test_what_is_idempotent_is_done_once_for_all_that_ask_for_it(
    database: Database, other: Any, idempotent: bool, updates: int
) -> None:
    await asyncio.gather(*(database.write(Insert(a)) for a in (1, 2)))
    await other.execute(
        "CREATE SEQUENCE updates; "
        "CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM nextval(''updates''); RETURN NEW; END'; "
        "CREATE TRIGGER counts BEFORE UPDATE ON thing FOR EACH ROW EXECUTE FUNCTION counted()"
    )
    before = database.batches
    asked = [1, 2, 1, 3, 1, 2, 1]
    answers = await asyncio.gather(
        *(database.write(Again(a, idempotent=idempotent)) for a in asked)
    )
    assert answers == [1, 1, 1, 0, 1, 1, 1]
    assert database.batches == before + 1
    assert await other.fetchval("SELECT last_value FROM updates") == updates


class Steps:
    """Updates things one after the other."""

    def __init__(self, *steps: tuple[Statement, int], subject: str | None = None) -> None:
        self._steps = steps
        self.subject = subject

    async def apply(self, tx: Transaction) -> None:
        for statement, a in self._steps:
            await tx.execute(statement, {"a": a})


_SET = sa.update(things).where(things.c.a == sa.bindparam("a", type_=sa.Integer)).values(b="x")
SOON, LAST = Statement(_SET), Statement(_SET, last=True)


@pytest.fixture
async def order(database: Database, other: Any) -> Any:
    """Returns in which order the things of a test were updated."""
    await asyncio.gather(*(database.write(Insert(a)) for a in range(1, 6)))
    await other.execute(
        "CREATE SEQUENCE updates; "
        "CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.d = nextval(''updates''); RETURN NEW; END'; "
        "CREATE TRIGGER numbers BEFORE UPDATE ON thing FOR EACH ROW EXECUTE FUNCTION numbered()"
    )

    async def updated() -> list[int]:
        rows = await other.fetch("SELECT a FROM thing WHERE d IS NOT NULL ORDER BY d")
        return [row[0] for row in rows]

    return updated


async def test_what_comes_last_comes_after_all_the_others_in_order(
    database: Database, order: Any
) -> None:
    """So that no two processes lock these rows in different orders."""
    before = database.batches
    await asyncio.gather(
        database.write(Steps((LAST, 5))),
        database.write(Steps((SOON, 3), (SOON, 4), (LAST, 2))),
        database.write(Steps((LAST, 1))),
    )
    assert await order() == [3, 4, 1, 2, 5]
    assert database.batches == before + 1


async def test_what_wants_to_be_alone_is(database: Database, order: Any) -> None:
    before = database.batches
    await asyncio.gather(
        database.write(Steps((SOON, 1))),
        database.write(Steps((SOON, 2), subject=ALONE)),
        database.write(Steps((SOON, 3))),
        database.write(Steps((SOON, 4), subject=ALONE)),
        database.write(Steps((SOON, 5))),
    )
    assert await order() == [1, 3, 5, 2, 4]
    assert database.batches == before + 3
