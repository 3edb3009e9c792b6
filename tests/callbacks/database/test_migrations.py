"""What the migrations make is what the code's tables say."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import SQLModel

from callbacks.database import DatabaseError
from callbacks.records import (
    CallbackRecord,
    DeliveryAttemptRecord,
    ReplicaRecord,
    SigningKeyRecord,
)
from gateway.records import ApiKeyRecord
from gateway.schema import migrate
from handlers.records import JournalRecord, OperationRecord, SignalRecord

_MODELS = (
    OperationRecord,
    JournalRecord,
    SignalRecord,
    CallbackRecord,
    DeliveryAttemptRecord,
    ReplicaRecord,
    SigningKeyRecord,
    ApiKeyRecord,
)


def described(path: Path) -> dict[str, object]:
    engine = sa.create_engine(f"sqlite:///{path}")
    inspector = sa.inspect(engine)
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
                    _plain(str(index.get("dialect_options", {}).get("sqlite_where", ""))),
                )
                for index in indexes
            ),
        }
    engine.dispose()
    return tables


def _affinity(kind: sa.types.TypeEngine[object]) -> str:
    name = type(kind).__name__.upper()
    return {"VARCHAR": "TEXT", "BIGINT": "INTEGER", "AUTOSTRING": "TEXT"}.get(name, name)


def _plain(where: str) -> str:
    return where.replace("(", "").replace(")", "").replace('"', "").strip()


def test_the_migrated_schema_is_the_one_of_the_tables(tmp_path: Path) -> None:
    assert {model.__tablename__ for model in _MODELS} <= set(SQLModel.metadata.tables)
    migrate(tmp_path / "migrated.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    tables = [SQLModel.metadata.tables[str(model.__tablename__)] for model in _MODELS]
    SQLModel.metadata.create_all(engine, tables=tables)
    engine.dispose()
    assert described(tmp_path / "migrated.db") == described(tmp_path / "made.db")


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.db"
    assert migrate(path) == migrate(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    migrate(path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseError, match="schema version 9999, which is newer"):
        migrate(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database " * 100)
    with pytest.raises(DatabaseError, match="is not a database"):
        migrate(tmp_path / "x.db")
