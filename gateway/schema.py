"""Brings a database's schema up to the code's, or says why it cannot."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import alembic.command
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from callbacks.database import (
    Database,
    DatabaseError,
    Statement,
    is_postgres,
    open_database,
    run_beside,
    shown_database,
    sqlite_path,
)
from callbacks.database.sqlite import acquire, prepare_file

_SCRIPTS = Path(__file__).with_name("migrations")

# Any number that nobody else uses: two processes that migrate at once take turns.
_ADVISORY_LOCK = 0x6E657875732D7267

_VERSION_TABLE = sa.table("alembic_version", sa.column("version_num", sa.String))
_HAS_TABLE = Statement(
    sa.select(sa.func.to_regclass(sa.bindparam("name", type_=sa.String)).is_not(None))
)
_HAS_VERSION_TABLE = Statement(sa.select(sa.func.to_regclass(_VERSION_TABLE.name).is_not(None)))
_VERSION = Statement(sa.select(_VERSION_TABLE.c.version_num))

T = TypeVar("T")


def migrate(url: str, *, lock_held: bool = False) -> str:
    """Apply the migrations that a database lacks, and return its schema version.

    Args:
        url: The database; a SQLite file is made where there is none. For PostgreSQL no event
            loop may be running in this thread.
        lock_held: Whether this process has the lock of the SQLite file. Otherwise it is taken
            for as long as it takes, if there is anything to do.

    Raises:
        DatabaseError: The schema is of a newer version of the gateway, or cannot be migrated.
        DatabaseInUse: A gateway serves the SQLite file, whose schema is old.
    """
    if is_postgres(url):
        return asyncio.run(_migrate_postgres(url))
    return _migrate_sqlite(sqlite_path(url), lock_held=lock_held)


async def open_with_schema(url: str) -> Database:
    """Open a database for a gateway to serve, with the schema of this code.

    A SQLite file is brought up to date: this process alone has it. A PostgreSQL database is
    only checked.

    Raises:
        DatabaseError: The database cannot be used; the message says what to do.
    """
    database = await open_database(url)
    try:
        if database.shared:
            await check_schema(database, url)
        else:
            migrate(url, lock_held=True)
    except BaseException:
        await database.aclose()
        raise
    return database


async def check_schema(database: Database, url: str) -> None:
    """Check that a PostgreSQL database has the schema of this code.

    It is not brought up to date when a gateway starts: others may be serving it.

    Raises:
        DatabaseError: It has another one, or none; the message says what to do.
    """
    head, known = _versions()
    current = None
    if (await database.fetch(_HAS_VERSION_TABLE, {}))[0][0]:
        rows = await database.fetch(_VERSION, {})
        current = rows[0][0] if rows else None
    if current == head:
        return
    shown = shown_database(url)
    _check_is_known(current, head, known, shown)
    has = "has no schema yet" if current is None else f"has schema version {current}, not {head}"
    raise DatabaseError(f"{shown} {has}: run `nexus-gateway database migrate --database URL`")


def prepare_beside(url: str, table: sa.Table) -> None:
    """Have a table that a command works on itself, beside the gateway that may be serving it.

    A SQLite file is made, or brought up to date; a PostgreSQL database has to have its schema.

    Raises:
        DatabaseError: The database cannot be used; the message says what to do.
    """
    if not is_postgres(url):
        migrate(url)
    elif not has_table(url, table):
        raise DatabaseError(
            f"{shown_database(url)} has no schema yet: "
            "run `nexus-gateway database migrate --database URL`"
        )


def has_table(url: str, table: sa.Table) -> bool:
    """Whether a PostgreSQL database has a table.

    Raises:
        DatabaseError: The database cannot be read.
    """
    return bool(run_beside(url, _HAS_TABLE, {"name": table.name})[0][0])


def _migrate_sqlite(path: Path, *, lock_held: bool) -> str:
    try:
        prepare_file(path)
    except OSError as error:
        raise DatabaseError(f"cannot open the SQLite database {path}: {error.strerror}") from error
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=NullPool)
    # The driver would commit before each statement that changes the schema; half a migration
    # could not be continued.
    sa.event.listen(engine, "connect", lambda c, _: setattr(c, "isolation_level", None))
    sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))

    def run(change: Callable[[sa.Connection], T]) -> T:
        try:
            with engine.begin() as connection:
                return change(connection)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseError(
                f"cannot open the SQLite database {path}: {_said(error)}"
            ) from error

    try:
        if run(lambda connection: _is_current(connection, str(path))):
            return _versions()[0]
        lock = None if lock_held else acquire(path)
        try:
            return run(lambda connection: _upgrade(connection, str(path)))
        finally:
            if lock is not None:
                os.close(lock)
    finally:
        engine.dispose()


async def _migrate_postgres(url: str) -> str:
    from callbacks.database.postgres_connections import MIGRATION_SETTINGS, PostgresAddress

    address = PostgresAddress(url)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: address.connect(MIGRATION_SETTINGS),
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.literal(_ADVISORY_LOCK, sa.BigInteger)))
            )
            return await connection.run_sync(lambda c: _upgrade(c, address.shown))
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise DatabaseError(f"cannot migrate {address.shown}: {_said(error)}") from error
    finally:
        await engine.dispose()


def _is_current(connection: sa.Connection, shown: str) -> bool:
    head, known = _versions()
    current = MigrationContext.configure(connection).get_current_revision()
    _check_is_known(current, head, known, shown)
    return current == head


def _upgrade(connection: sa.Connection, shown: str) -> str:
    # Asked again: now nobody else changes it.
    if not _is_current(connection, shown):
        config = _config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")
    return _versions()[0]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config


def _versions() -> tuple[str, set[str]]:
    """Return the schema version of this code, and all that it can migrate from."""
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    assert head is not None
    return head, {script.revision for script in scripts.walk_revisions()}


def _check_is_known(current: str | None, head: str, known: set[str], shown: str) -> None:
    if current is not None and current not in known:
        raise DatabaseError(
            f"{shown} has schema version {current}, which is newer than this gateway "
            f"({head}); install the newer nexus-rpc-gateway that wrote it"
        )


def _said(error: Exception) -> str:
    # SQLAlchemy's own text has the statement and links to its manual.
    said = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return " ".join(str(said).split())
