"""The three-step operation on the `dbos` library, in this process; see `durable_steps`."""

import argparse
import sqlite3
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig
from sqlalchemy import event

from benchmarks.bench_service import step
from benchmarks.closed_loop import Measure, run_child

recorded_step = DBOS.step()(step)


@DBOS.workflow()
async def steps(value: dict[str, Any]) -> dict[str, Any]:
    """Do what `BenchHandler.steps` does."""
    text = ""
    for _ in range(3):
        text = await recorded_step(text)
    return {"ok": True, "input": value, "text": text}


@event.listens_for(sa.Engine, "connect")
def _write_ahead(connection: Any, _record: Any) -> None:
    """Put SQLite in the mode of the gateway's own: dbos leaves it with a rollback journal."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")


async def serve(options: argparse.Namespace, measure: Measure) -> None:
    """Launch dbos, measure, and take it down."""
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": options.database,
        "log_level": "WARNING",
        "application_version": "1",
        "executor_id": "bench",
    }
    DBOS(config=config)
    DBOS.launch()

    async def once(number: int) -> None:
        answer = await steps({"id": number, "name": "bench", "pad": "x" * 70})
        assert answer["text"] == "..."

    try:
        await measure(once)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    run_child(serve)
