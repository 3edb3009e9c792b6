"""Single statements on a database beside the gateway that may be serving it."""

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import Any

from callbacks.database.errors import DatabaseError
from callbacks.database.sqlite import connect
from callbacks.database.statements import Row, Statement
from callbacks.database.urls import is_postgres, sqlite_path


def run_beside(url: str, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
    """Run and commit one statement, for commands; return its rows.

    A statement that changes rows says with RETURNING which. No event loop may be running in this
    thread.

    Raises:
        DatabaseError: The database cannot be used.
    """
    if is_postgres(url):
        return asyncio.run(_run_on_postgres(url, statement, params))
    path = sqlite_path(url)
    connection = connect(path)
    try:
        return connection.execute(statement.sql, params).fetchall()
    except sqlite3.Error as error:
        raise DatabaseError(f"{path}: {error}") from error
    finally:
        connection.close()


async def _run_on_postgres(url: str, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
    import asyncpg

    from callbacks.database.lockstep import run_single
    from callbacks.database.postgres_connections import (
        WRITER_SETTINGS,
        PostgresAddress,
        watched,
    )

    address = PostgresAddress(url)
    connection = await address.connect(WRITER_SETTINGS)
    try:
        async with watched(connection):
            return await run_single(connection, statement, params)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise DatabaseError(f"{address.shown}: {error}") from error
    finally:
        connection.terminate()
