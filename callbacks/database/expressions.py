"""SQL that the two databases say differently."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.selectable import TableValuedAlias


class database_now(FunctionElement[int]):  # noqa: N801  # a function, as SQLAlchemy's own
    """The database's time in milliseconds since 1970: the one clock that all processes share."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(database_now)
def _now_in_messages(_: database_now, __: SQLCompiler, **___: Any) -> str:
    return "database_now()"


@compiles(database_now, "sqlite")
def _now_on_sqlite(_: database_now, __: SQLCompiler, **___: Any) -> str:
    # The Julian day has fewer digits than it takes for exact milliseconds; this has them all.
    return "CAST(strftime('%s', 'now') * 1000 + substr(strftime('%f', 'now'), 4) AS INTEGER)"


@compiles(database_now, "postgresql")
def _now_on_postgresql(_: database_now, __: SQLCompiler, **___: Any) -> str:
    # Not now(): that is when the transaction began.
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"


class _json_texts(GenericFunction[str]):  # noqa: N801
    type = sa.String()
    inherit_cache = True


@compiles(_json_texts, "sqlite")
def _texts_on_sqlite(element: _json_texts, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_json_texts, "postgresql")
def _texts_on_postgresql(element: _json_texts, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **kw)} AS json))"


class greatest(GenericFunction[int]):  # noqa: N801  # a function, as SQLAlchemy's own
    """The greatest of several numbers, none of which may be NULL."""

    type = sa.BigInteger()
    inherit_cache = True


class least(GenericFunction[int]):  # noqa: N801  # likewise
    """The least of several numbers, none of which may be NULL."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(greatest, "sqlite")
def _greatest_on_sqlite(element: greatest, compiler: SQLCompiler, **kw: Any) -> str:
    return f"max({compiler.process(element.clauses, **kw)})"


@compiles(least, "sqlite")
def _least_on_sqlite(element: least, compiler: SQLCompiler, **kw: Any) -> str:
    return f"min({compiler.process(element.clauses, **kw)})"


def listed(parameter: str) -> sa.Select[tuple[str]]:
    """Return a query for the texts of a JSON array that is bound as one parameter.

    For `column.in_(listed("names"))`: an IN list of values would be compiled anew for each length.
    """
    return sa.select(listed_rows(parameter).c.value)


def listed_rows(parameter: str) -> TableValuedAlias:
    """Return the same texts as something to join with; their column is `value`."""
    return _json_texts(sa.bindparam(parameter, type_=sa.String)).table_valued("value")
