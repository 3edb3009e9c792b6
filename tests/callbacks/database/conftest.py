"""An open database of either kind, with a small table of the tests' own."""

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Database, Statement, Transaction, open_database, sqlite_path

things = sa.Table(
    "thing",
    sa.MetaData(),
    sa.Column("a", sa.Integer, primary_key=True),
    sa.Column("b", sa.String),
    sa.Column("c", sa.LargeBinary),
    sa.Column("d", sa.BigInteger),
)
_CREATE = "CREATE TABLE thing (a INTEGER PRIMARY KEY, b VARCHAR, c {bytes}, d BIGINT)"

INSERT = Statement(sa.insert(things).values(a=sa.bindparam("a"), b=sa.bindparam("b")))
ALL = Statement(sa.select(things.c.a, things.c.b).order_by(things.c.a))


@dataclass
class Insert:
    """Inserts a thing, and then fails where it is told to."""

    a: Any
    error: BaseException | None = None
    subject: str | None = None
    b: str = ""
    runs: int = 0

    async def apply(self, tx: Transaction) -> int:
        self.runs += 1
        changed = await tx.execute(INSERT, {"a": self.a, "b": self.b})
        if self.error is not None:
            raise self.error
        return changed


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'things.db'}"
    connection = sqlite3.connect(sqlite_path(url))
    connection.execute(_CREATE.format(bytes="BLOB"))
    connection.close()
    return url


@pytest.fixture
def things_url(postgres_url: str, request: pytest.FixtureRequest) -> str:
    request.getfixturevalue("postgres").sql(postgres_url, _CREATE.format(bytes="BYTEA"))
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "things_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await open_database(url)
    yield opened
    await opened.aclose()
