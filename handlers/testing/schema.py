"""A fresh database file with the tables of the engine."""

import functools
import tempfile
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import SQLModel

from callbacks import records as callback_records
from callbacks.database import table_of
from handlers import records

_TABLES = (*records.RECORDS, *callback_records.RECORDS)


def write_fresh_database(path: Path) -> None:
    """Make a database in which there is nothing yet, as the migrations would."""
    path.write_bytes(_fresh_database())


@functools.cache
def _fresh_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fresh.db"
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
        try:
            # Only these: the metadata also holds the tables of those who use SQLModel themselves.
            SQLModel.metadata.create_all(engine, tables=[table_of(model) for model in _TABLES])
        finally:
            engine.dispose()
        return path.read_bytes()
