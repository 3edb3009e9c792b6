"""A database that is read, and never written."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from callbacks.database import DatabaseError, Row, Statement
from callbacks.database.urls import is_postgres, open_database, sqlite_path


class Reader(Protocol):
    """What is needed of a database to read it."""

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query and return its rows."""


class _SqliteFile:
    """A SQLite file, opened in a way that cannot change it; another process may be serving it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise DatabaseError(f"cannot open the SQLite database {path}: {error}") from error

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        try:
            return self._connection.execute(statement.sql, params).fetchall()
        except sqlite3.Error as error:
            raise DatabaseError(
                f"cannot read the SQLite database {self._path}: {error} (is it a copy that was "
                "made by an older gateway? nexus-gateway database migrate brings it up to date)"
            ) from error

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def reading(database: str | Path) -> AsyncIterator[Reader]:
    """Open a database that nothing is written to.

    Args:
        database: A URL as `--database` takes it, or the path of a SQLite file.

    Raises:
        InvalidDatabaseUrl: The URL names none.
        DatabaseError: It cannot be opened.
    """
    if isinstance(database, str) and is_postgres(database):
        opened = await open_database(database)
        try:
            yield opened
        finally:
            await opened.aclose()
        return
    path = database if isinstance(database, Path) else sqlite_path(database)
    file = _SqliteFile(path)
    try:
        yield file
    finally:
        file.close()
