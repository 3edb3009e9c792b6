"""SQLite: one process, one file, one connection on the event loop."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from callbacks.database.database import Subscriber, tell
from callbacks.database.errors import DatabaseClosed, DatabaseError, DatabaseInUse
from callbacks.database.statements import Row, Statement, Write
from callbacks.database.writer import GroupCommit

T = TypeVar("T")


def connect(path: Path, *, busy_timeout_seconds: float = 2.0) -> sqlite3.Connection:
    """Open the file for durable work: WAL, an fsync on every commit, transactions by hand.

    Raises:
        DatabaseError: The file cannot be opened or is no SQLite database.
    """
    try:
        prepare_file(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=busy_timeout_seconds)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise DatabaseError(f"cannot open the SQLite database {path}: {error}") from error
    return connection


def prepare_file(path: Path) -> None:
    """Make the file, if there is none, for this user alone: it holds inputs and callback headers.

    SQLite gives its `-wal` and `-shm` files the same permissions.

    Raises:
        OSError: It cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never a file that is there: closing any descriptor of it drops the locks that SQLite holds
    # on it in this process, and another process would then take the write-ahead log away.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


_CHANGES = "SELECT changes()"


class _SqliteTransaction:
    __slots__ = ("_cursor", "notifications")

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        self.notifications: dict[tuple[str, str], None] = {}  # in order, each once

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        changed = self._cursor.execute(statement.sql, params).rowcount
        # The driver takes a statement that begins with WITH for a query, and counts nothing.
        return changed if changed >= 0 else int(self._cursor.execute(_CHANGES).fetchone()[0])

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        return self._cursor.execute(statement.sql, params).fetchall()

    async def notify(self, channel: str, payload: str) -> None:
        self.notifications[channel, payload] = None


class SqliteDatabase:
    """One SQLite file, held by this process alone.

    A `flock` on `FILE.lock` keeps a second gateway out; holding it proves that every earlier
    owner is dead. (A POSIX `lockf` lock would vanish when any descriptor of the file closes.)
    """

    dialect: Final[Literal["sqlite"]] = "sqlite"
    shared: Final = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._subscribers: list[Subscriber] = []
        self._lock = acquire(path)
        try:
            self._connection = connect(path)
        except BaseException:
            os.close(self._lock)
            raise
        self._transaction = _SqliteTransaction(self._connection.cursor())
        self._writer = GroupCommit(self._commit)
        self._closed = False

    @property
    def batches(self) -> int:
        """How many transactions were committed."""
        return self._writer.batches

    @property
    def writes(self) -> int:
        """How many writes those transactions held."""
        return self._writer.writes

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Queue a write; the future has its answer once it is on the disk."""
        return self._writer.write(write)

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query on what is committed and return its rows.

        Raises:
            DatabaseClosed: The store is closed.
        """
        if self._closed:
            raise DatabaseClosed("the store is closed")
        return await self._transaction.fetch(statement, params)

    def subscribe(self, callback: Subscriber) -> None:
        """Have a function called with (channel, payload) of what transactions notify."""
        self._subscribers.append(callback)

    async def aclose(self) -> None:
        """Commit what waits, close the file and let another process have it."""
        self.close()

    def close(self) -> None:
        """As `aclose`, for which there is nothing to wait."""
        if self._closed:
            return
        self._writer.close()
        self._closed = True
        self._connection.close()
        os.close(self._lock)

    def _commit(self, writes: Sequence[Write[Any]]) -> list[Any]:
        try:
            return self._commit_together(writes)
        except sqlite3.OperationalError as error:
            # Locked, full or failing disk: no write would fare better alone.
            return [error] * len(writes)
        except Exception as error:  # noqa: BLE001  # each write is told its own
            if len(writes) == 1:
                return [error]
        # One write that cannot be done must not take the others with it.
        answers: list[Any] = []
        for write in writes:
            try:
                answers += self._commit_together([write])
            except Exception as error:  # noqa: BLE001  # each write is told its own
                answers.append(error)
        return answers

    def _commit_together(self, writes: Sequence[Write[Any]]) -> list[Any]:
        # A deferred transaction that reads and then writes can fail with "database is locked"
        # at once, whatever the busy timeout.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            answers = [_run(write.apply(self._transaction)) for write in writes]
            self._connection.execute("COMMIT")
        except BaseException:
            self._transaction.notifications.clear()
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        if self._transaction.notifications:
            self._loop.call_soon(self._tell, tuple(self._transaction.notifications))
            self._transaction.notifications.clear()
        return answers

    def _tell(self, notifications: Iterable[tuple[str, str]]) -> None:
        for channel, payload in notifications:
            tell(self._subscribers, channel, payload)


def _run(applied: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for: every statement answers at once."""
    try:
        applied.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    applied.close()
    raise RuntimeError("a write awaits nothing but its transaction")


def acquire(path: Path) -> int:
    """Take the lock that says that this process serves a file; closing the descriptor frees it.

    Raises:
        DatabaseInUse: Another process has it.
        DatabaseError: The lock's file cannot be made.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(f"cannot open the SQLite database {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise DatabaseInUse(
            f"{path} is served by another gateway; stop it first, or give this one its own "
            "file with --database sqlite:///OTHER_PATH"
        ) from error
    return lock
