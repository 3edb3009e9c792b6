"""Reading the `--database` setting and opening what it names."""

import re
from pathlib import Path
from urllib.parse import unquote

from callbacks.database.database import Database
from callbacks.database.errors import InvalidDatabaseUrl
from callbacks.database.sqlite import SqliteDatabase

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


def is_postgres(url: str) -> bool:
    """Whether a URL names a PostgreSQL database."""
    return url.startswith(_POSTGRES)


def sqlite_path(url: str) -> Path:
    """Return the file that a `sqlite:///relative` or `sqlite:////absolute` URL names.

    Raises:
        InvalidDatabaseUrl: Another scheme, no path, or an in-memory database, which would lose
            every operation with the process.
    """
    if not url.startswith(_SQLITE):
        shown = re.sub(r"//.*@", "//...@", url)  # there may be a password in it
        raise InvalidDatabaseUrl(
            f"{shown!r} is not a database URL; use sqlite:///data/nexus.db, or "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        )
    path = unquote(url.removeprefix(_SQLITE).partition("?")[0])
    if not path or path == ":memory:":
        raise InvalidDatabaseUrl(
            "an in-memory database would lose every operation; use sqlite:///data/nexus.db"
        )
    return Path(path)


def check_url(url: str) -> None:
    """Check that a URL names a database that can be opened, without opening it.

    Raises:
        InvalidDatabaseUrl: It does not.
    """
    if is_postgres(url):
        from callbacks.database.postgres_connections import PostgresAddress

        PostgresAddress(url)
    else:
        sqlite_path(url)


def shown_database(url: str) -> str:
    """Return how a database is named to people: its file, or its URL without the password."""
    if is_postgres(url):
        from callbacks.database.postgres_connections import without_password

        return without_password(url)
    return str(sqlite_path(url))


async def open_database(url: str) -> Database:
    """Open the database that a URL names; its schema is neither made nor checked.

    Raises:
        InvalidDatabaseUrl: The URL names none.
        DatabaseInUse: Another process serves the SQLite file.
        DatabaseError: It cannot be opened or reached; the message says why.
    """
    if is_postgres(url):
        # Imported where it is needed: the driver takes a while.
        from callbacks.database.postgres import PostgresDatabase

        return await PostgresDatabase.open(url)
    return SqliteDatabase(sqlite_path(url))
