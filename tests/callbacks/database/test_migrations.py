"""What the migrations make is what the code's tables say."""

import asyncio
import importlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from callbacks import records as callback_records
from callbacks.database import DatabaseError, DatabaseInUse, SqliteDatabase
from gateway.records import ApiKeyRecord
from gateway.schema import migrate, open_with_schema
from handlers import records
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

_MODELS: tuple[type[SQLModel], ...] = (*records.RECORDS, *callback_records.RECORDS, ApiKeyRecord)


def described(connection: sa.Connection) -> dict[str, object]:
    inspector = sa.inspect(connection)
    tables: dict[str, object] = {}
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        indexes = inspector.get_indexes(table)
        tables[table] = {
            "columns": {
                column["name"]: (_affinity(column["type"]), column["nullable"])
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(
                sorted(map(str, c["column_names"])) for c in inspector.get_unique_constraints(table)
            ),
            "indexes": sorted(
                (
                    str(index["name"]),
                    tuple(index["column_names"]),
                    _plain(
                        index.get("dialect_options", {}).get(f"{connection.dialect.name}_where", "")
                    ),
                )
                for index in indexes
                if "duplicates_constraint" not in index
            ),
        }
    return tables


def _affinity(kind: sa.types.TypeEngine[object]) -> str:
    name = type(kind).__name__.upper()
    return {"VARCHAR": "TEXT", "BIGINT": "INTEGER", "AUTOSTRING": "TEXT"}.get(name, name)


def _plain(where: object) -> str:
    return str(where).replace("(", "").replace(")", "").replace('"', "").strip()


def _make(connection: sa.Connection) -> None:
    tables = [SQLModel.metadata.tables[str(model.__tablename__)] for model in _MODELS]
    SQLModel.metadata.create_all(connection, tables=tables)


def _described_file(path: Path, change: Callable[[sa.Connection], None] | None = None) -> object:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        if change is not None:
            change(connection)
        described_so = described(connection)
    engine.dispose()
    return described_so


async def _described_server(
    url: str, change: Callable[[sa.Connection], None] | None = None
) -> object:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        if change is not None:
            await connection.run_sync(change)
        described_so = await connection.run_sync(described)
    await engine.dispose()
    return described_so


def test_the_migrated_schema_is_the_one_of_the_tables(tmp_path: Path) -> None:
    assert {model.__tablename__ for model in _MODELS} <= set(SQLModel.metadata.tables)
    migrate(f"sqlite:///{tmp_path / 'migrated.db'}")
    assert _described_file(tmp_path / "migrated.db") == _described_file(tmp_path / "made.db", _make)


def test_on_postgresql_too(postgres: PostgresServer) -> None:
    migrated = postgres.fresh_database()
    made = postgres.empty_database()
    assert asyncio.run(_described_server(migrated)) == asyncio.run(_described_server(made, _make))
    postgres.drop(migrated)
    postgres.drop(made)


def test_migrating_again_changes_nothing(tmp_path: Path, postgres_url: str) -> None:
    url = f"sqlite:///{tmp_path / 'folder' / 'x.db'}"
    assert migrate(url) == migrate(url) == migrate(postgres_url)


def test_processes_that_migrate_at_once_take_turns(postgres: PostgresServer) -> None:
    url = postgres.empty_database()
    with ThreadPoolExecutor() as threads:
        versions = {found.result() for found in [threads.submit(migrate, url) for _ in range(4)]}
    assert len(versions) == 1
    assert postgres.sql(url, "SELECT version_num FROM alembic_version").split() == list(versions)
    postgres.drop(url)


def test_a_newer_schema_is_refused(tmp_path: Path, postgres: PostgresServer) -> None:
    path = tmp_path / "x.db"
    migrate(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    url = postgres.fresh_database()
    postgres.sql(url, "UPDATE alembic_version SET version_num = '9999'")
    for newer in (f"sqlite:///{path}", url):
        with pytest.raises(DatabaseError, match="schema version 9999, which is newer"):
            migrate(newer)
    with pytest.raises(DatabaseError, match="schema version 9999, which is newer"):
        asyncio.run(open_with_schema(url))
    postgres.drop(url)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database " * 100)
    with pytest.raises(DatabaseError, match="is not a database"):
        migrate(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_gateway_does_not_migrate_postgresql_by_itself(postgres: PostgresServer) -> None:
    empty = postgres.empty_database()
    with pytest.raises(DatabaseError, match="no schema yet: run `nexus-gateway database migrate"):
        asyncio.run(open_with_schema(empty))
    migrate(empty)

    async def opened() -> None:
        await (await open_with_schema(empty)).aclose()

    asyncio.run(opened())
    postgres.sql(empty, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(DatabaseError, match="has schema version 0001, not 0"):
        asyncio.run(opened())
    postgres.drop(empty)


def _old_file(path: Path) -> str:
    """Make a file with the first schema and an operation, as an older gateway left it."""
    connection = sqlite3.connect(path)
    context = MigrationContext.configure(
        sa.create_engine("sqlite://", creator=lambda: connection).connect()
    )
    with Operations.context(context):
        importlib.import_module("gateway.migrations.versions.0001_first_schema").upgrade()
    connection.executescript("""
        CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
        INSERT INTO alembic_version VALUES ('0001');
    """)
    connection.close()
    return f"sqlite:///{path}"


async def test_a_file_that_is_served_is_not_migrated_under_its_gateway(tmp_path: Path) -> None:
    url = _old_file(tmp_path / "x.db")
    serving = SqliteDatabase(tmp_path / "x.db")
    with pytest.raises(DatabaseInUse, match="served by another gateway"):
        migrate(url)
    serving.close()
    head = migrate(url)
    serving = SqliteDatabase(tmp_path / "x.db")
    assert migrate(url) == head  # there is nothing to do
    serving.close()
