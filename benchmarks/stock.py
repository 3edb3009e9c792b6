"""Operations in any number, made in the database from one that a gateway has left there.

The copies have tokens and request ids of their own and otherwise the shape that a real run leaves,
in a fraction of the time.
"""

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.databases import Database
from benchmarks.servers import ServerNotStarted, gateway

_AT_ONCE = 50_000
# Longer than any number of copies, so that tokens keep their order and their length.
_FIRST = 10**9
_WITHIN_SECONDS = 30.0
# How many journal entries each has when it is as it should be.
_ENTRIES = {"held": 2, "sleeper": 2}


@dataclass(frozen=True)
class Template:
    """One operation as it was found in the database: its row, and those of its journal."""

    operation: Mapping[str, Any]
    journal: Sequence[Mapping[str, Any]]


def make_templates(database: Database, folder: Path) -> tuple[Template, Template]:
    """Return what a running and a sleeping operation leave in the database at a `kill -9`.

    The running one has two recorded steps and is in its third, the last. Both are then deleted.
    """
    engine = database.engine()
    with gateway(folder, database.url, name="first", environment={"BENCH_HOLD": "1"}) as server:
        tokens = [_start(f"{server.base_url}/services/bench/{name}") for name in _ENTRIES]
        for token, entries in zip(tokens, _ENTRIES.values(), strict=True):
            _wait_for_entries(engine, token, entries)
        server.kill()
    with engine.begin() as connection:
        held, sleeper = (_take_out(connection, token) for token in tokens)
    engine.dispose()
    return held, sleeper


def add_running(database: Database, template: Template, numbers: range) -> None:
    """Add copies of a running operation as it is."""
    _add(database, template, numbers, {}, {})


def add_suspended(
    database: Database, template: Template, numbers: range, *, due_in_ms: int
) -> None:
    """Add copies of a sleeping operation that have left memory and are due some time from now."""
    # One by one, and not all in the same millisecond.
    due_at = f"CAST({round(time.time() * 1000) + due_in_ms} AS BIGINT) + n"
    row = {"state": "'ready'", "owner": "NULL", "run_at": due_at}
    _add(database, template, numbers, row, {"wake_at": due_at})


def count_open(engine: sa.Engine) -> int:
    """Return how many operations have not ended."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM operation WHERE state IN ('ready', 'running', 'paused')"
        return int(connection.execute(sa.text(query)).scalar_one())


def count_succeeded(engine: sa.Engine) -> int:
    """Return how many operations have ended with their result."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM operation WHERE state = 'succeeded'"
        return int(connection.execute(sa.text(query)).scalar_one())


def stored_bytes(database: Database) -> int:
    """Return how large a database is."""
    engine = database.engine()
    query = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if engine.dialect.name == "sqlite"
        else "SELECT pg_database_size(current_database())"
    )
    with engine.connect() as connection:
        size = int(connection.execute(sa.text(query)).scalar_one())
    engine.dispose()
    return size


def _take_out(connection: sa.Connection, token: str) -> Template:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for table in ("operation", "journal"):
        where = f"FROM {table} WHERE token = :token"
        rows = connection.execute(sa.text(f"SELECT * {where}"), {"token": token})
        found[table] = [dict(row) for row in rows.mappings()]
        connection.execute(sa.text(f"DELETE {where}"), {"token": token})
    return Template(found["operation"][0], found["journal"])


def _add(
    database: Database,
    template: Template,
    numbers: range,
    row: Mapping[str, str],
    timer: Mapping[str, str],
) -> None:
    token = f"CAST(:copied AS TEXT) || CAST({_FIRST} + n AS TEXT)"
    copied = {"copied": template.operation["token"]}
    statements = [
        _adding("operation", template.operation, {"token": token, "request_id": token, **row})
    ]
    for entry in template.journal:
        changed = {"token": token, **(timer if entry["wake_at"] is not None else {})}
        statements.append(_adding("journal", entry, changed))
    engine = database.engine()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # What fills the file is not measured.
            connection.execute(sa.text("PRAGMA synchronous=OFF"))
        for first in range(numbers.start, numbers.stop, _AT_ONCE):
            last = min(numbers.stop, first + _AT_ONCE) - 1
            for statement, values in statements:
                connection.execute(statement, {**values, **copied, "first": first, "last": last})
            connection.commit()
        if engine.dialect.name == "sqlite":
            connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()


def _adding(
    table: str, row: Mapping[str, Any], changed: Mapping[str, str]
) -> tuple[sa.TextClause, dict[str, Any]]:
    """Return the statement that adds copies of a row, and what of it they share."""
    names = ", ".join(f'"{column}"' for column in row)
    values = ", ".join(changed.get(column, f":{column}") for column in row)
    statement = sa.text(
        "WITH RECURSIVE numbers(n) AS (SELECT CAST(:first AS BIGINT) UNION ALL "  # noqa: S608  # our own columns
        "SELECT n + 1 FROM numbers WHERE n < :last) "
        f"INSERT INTO {table} ({names}) SELECT {values} FROM numbers"
    )
    return statement, {name: value for name, value in row.items() if name not in changed}


def _start(url: str) -> str:
    request = urllib.request.Request(  # noqa: S310  # our own
        url, data=b'{"name": "bench"}', headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310  # our own
        return str(json.load(response)["token"])


def _wait_for_entries(engine: sa.Engine, token: str, entries: int) -> None:
    query = sa.text("SELECT count(*) FROM journal WHERE token = :token")
    deadline = time.monotonic() + _WITHIN_SECONDS
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            if connection.execute(query, {"token": token}).scalar_one() == entries:
                return
        time.sleep(0.02)
    raise ServerNotStarted(f"operation {token} has not written {entries} journal entries")
