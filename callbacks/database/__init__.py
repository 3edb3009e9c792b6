"""The database: connections, the group-committing writer and statements compiled once.

The lowest package that writes. Tables live beside their owners (`callbacks.records`,
`handlers.records`, `gateway.records`); what is here knows none of them.
"""

from callbacks.database.beside import run_beside
from callbacks.database.database import Database
from callbacks.database.errors import (
    DatabaseClosed,
    DatabaseError,
    DatabaseInUse,
    DatabaseUnavailable,
    InvalidDatabaseUrl,
    OutcomeUnknown,
)
from callbacks.database.expressions import (
    database_now,
    greatest,
    least,
    listed,
    listed_rows,
)
from callbacks.database.persist import Writer, persist
from callbacks.database.sqlite import SqliteDatabase
from callbacks.database.statements import (
    ALONE,
    Row,
    Statement,
    Transaction,
    Write,
    partial_index,
    table_of,
)
from callbacks.database.urls import (
    check_url,
    is_postgres,
    open_database,
    shown_database,
    sqlite_path,
)
from callbacks.database.writer import GroupCommit

__all__ = [
    "ALONE",
    "Database",
    "DatabaseClosed",
    "DatabaseError",
    "DatabaseInUse",
    "DatabaseUnavailable",
    "GroupCommit",
    "InvalidDatabaseUrl",
    "OutcomeUnknown",
    "Row",
    "SqliteDatabase",
    "Statement",
    "Transaction",
    "Write",
    "Writer",
    "check_url",
    "database_now",
    "greatest",
    "is_postgres",
    "least",
    "listed",
    "listed_rows",
    "open_database",
    "partial_index",
    "persist",
    "run_beside",
    "shown_database",
    "sqlite_path",
    "table_of",
]
