"""Completions that are due, in any number, made in the database's outbox."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks.completions import all_headers_of, body_of, token_of
from benchmarks.databases import Database
from callbacks.database import table_of
from callbacks.records import CallbackRecord, CallbackState, DestinationRecord
from nexus_spec.json_text import json_text

_AT_ONCE = 10_000
_HOUR_MS = 3_600_000

_callback = table_of(CallbackRecord)
_destination = table_of(DestinationRecord)


@dataclass(frozen=True)
class Backlog:
    """The completions that wait for one destination; their numbers go on from those before."""

    destination: str  # scheme://host:port
    url: str
    numbers: range


def backlogs(sizes: Sequence[int], port: int) -> list[Backlog]:
    """Return backlogs of such sizes for as many host names on one port of this machine."""
    found: list[Backlog] = []
    first = 1
    for place, size in enumerate(sizes):
        name = destination_name(place, port)
        found.append(Backlog(name, f"{name}/done", range(first, first + size)))
        first += size
    return found


def destination_name(place: int, port: int) -> str:
    """Return the name of a destination on this machine that only the benchmark resolves."""
    return f"http://d{place:04}.test:{port}"


def add_due(database: Database, waiting: Sequence[Backlog]) -> None:
    """Add them, due since an hour ago, those of the first destination for longest."""
    now = round(time.time() * 1000)
    engine = database.engine()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # What fills the file is not measured.
            connection.execute(sa.text("PRAGMA synchronous=OFF"))
        rows = [_row(backlog, number, now) for backlog in waiting for number in backlog.numbers]
        for first in range(0, len(rows), _AT_ONCE):
            connection.execute(sa.insert(_callback), rows[first : first + _AT_ONCE])
        destinations = [_destination_row(backlog, now) for backlog in waiting]
        connection.execute(sa.insert(_destination), destinations)
        connection.commit()
        if engine.dialect.name == "sqlite":
            connection.execute(sa.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()


def count_delivered(database: Database) -> int:
    """Return how many completions the database has as delivered."""
    engine = database.engine()
    query = sa.select(sa.func.count()).where(_callback.c.state == CallbackState.DELIVERED.value)
    with engine.connect() as connection:
        found = int(connection.execute(query).scalar_one())
    engine.dispose()
    return found


def _row(backlog: Backlog, number: int, now: int) -> dict[str, Any]:
    return {
        "id": number,
        "token": token_of(number),
        "slot": 0,
        "registration_hash": b"0" * 32,
        "destination": backlog.destination,
        "url": backlog.url,
        "headers": json_text(all_headers_of(number)),
        "body": body_of(number),
        "state": CallbackState.DUE.value,
        "attempt": 0,
        "retries": 0,
        "outcome_unknown": 0,
        "next_at": _due_at(number, now),
        "deadline_at": now + 72 * _HOUR_MS,
        "created_at": now - _HOUR_MS,
    }


def _destination_row(backlog: Backlog, now: int) -> dict[str, Any]:
    return {
        "name": backlog.destination,
        "wake_at": _due_at(backlog.numbers.start, now),
        "failures": 0,
        "openings": 0,
        "changed_at": now,
    }


def _due_at(number: int, now: int) -> int:
    return now - _HOUR_MS + number
