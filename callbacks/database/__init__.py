"""The database: connections, the group-committing writer and statements compiled once.

The lowest package that writes. Tables live beside their owners (`callbacks.records`,
`handlers.records`, `gateway.records`); what is here knows none of them.
"""

from callbacks.database.errors import (
    DatabaseClosed,
    DatabaseError,
    DatabaseInUse,
    InvalidDatabaseUrl,
)
from callbacks.database.expressions import database_now, listed
from callbacks.database.persist import Writer, persist
from callbacks.database.sqlite import SqliteDatabase
from callbacks.database.statements import (
    Row,
    Statement,
    Transaction,
    Write,
    partial_index,
    table_of,
)
from callbacks.database.urls import sqlite_path
from callbacks.database.writer import GroupCommit

__all__ = [
    "DatabaseClosed",
    "DatabaseError",
    "DatabaseInUse",
    "GroupCommit",
    "InvalidDatabaseUrl",
    "Row",
    "SqliteDatabase",
    "Statement",
    "Transaction",
    "Write",
    "Writer",
    "database_now",
    "listed",
    "partial_index",
    "persist",
    "sqlite_path",
    "table_of",
]
