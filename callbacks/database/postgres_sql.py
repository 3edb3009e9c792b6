"""A statement as PostgreSQL runs it: for one set of parameters, and for many at once.

The batched form takes an array for each parameter and joins the statement with their rows:

    UPDATE operation SET progress = given.new_progress
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS given(token, new_progress, ordinality)
    WHERE operation.token = given.token
    RETURNING given.ordinality

so that a transaction of many writes takes few round trips. What it returns says which of the
parameter sets each row belongs to.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    ColumnElement,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import TableValuedAlias

from callbacks.database.literals import ignoring_conflicts, with_literals

_DIALECT = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's own
_ORDINALITY = "ordinality"

# The first that fits; BigInteger is an Integer, too.
_KINDS: Sequence[tuple[type[sa.types.TypeEngine[Any]], str]] = (
    (sa.Boolean, "boolean"),
    (sa.BigInteger, "bigint"),
    (sa.Integer, "integer"),
    (sa.Float, "double precision"),
    (sa.LargeBinary, "bytea"),
    (sa.String, "text"),
)

# What would mean something else over many sets of parameters than over each.
_FOR_ONE_SET_ONLY = re.compile(
    r"^\s*WITH\b|\b(LIMIT|OFFSET|FETCH|DISTINCT|GROUP BY|HAVING|UNION|EXCEPT|INTERSECT|OVER)\b"
    r"|\b(count|min|max|sum|avg|array_agg|string_agg|json_array_elements_text)\(",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"'(?:[^']|'')*'")


class Answers(Enum):
    """How the rows of a batched statement find the set of parameters that they belong to."""

    BY_ORDINAL = auto()  # the last column is its number, from 1
    BY_POSITION = auto()  # one row for each, in order
    BY_KEY = auto()  # the last columns are its values of `key`


@dataclass(frozen=True, slots=True)
class Single:
    """A statement for one set of parameters."""

    sql: str
    names: tuple[str, ...]  # of $1, $2, ...


@dataclass(frozen=True, slots=True)
class Batched:
    """A statement for many sets of parameters."""

    sql: str
    names: tuple[str, ...]  # of the arrays $1, $2, ...
    answers: Answers
    key: tuple[str, ...] = ()
    returns_rows: bool = True
    # Sets that are equal in these may change the same row, which one statement does only once.
    apart_by: tuple[str, ...] = ()
    # Sets are sorted by these, so that two processes lock rows in the same order.
    sorted_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PostgresForms:
    """Both forms of a statement; without the batched one, it runs once for each set."""

    single: Single
    batched: Batched | None
    changes: bool
    adds: bool


def postgres_forms(clause: ClauseElement, *, or_ignore: bool, correlated: bool) -> PostgresForms:
    """Compile a statement for PostgreSQL; see `Statement` for the arguments.

    Raises:
        TypeError: A parameter has no type.
    """
    if isinstance(clause, sa.Insert):
        clause = clause.inline()  # SQLAlchemy would add a RETURNING for the serial number
    text, kinds = _compile(clause, or_ignore=or_ignore)
    single = Single(*_numbered(text, kinds, ""))
    batched = None
    if kinds and (correlated or not _FOR_ONE_SET_ONLY.search(_QUOTED.sub("''", text))):
        batched = _Batcher(clause, kinds, or_ignore=or_ignore).batched()
    return PostgresForms(
        single,
        batched,
        changes=not isinstance(clause, sa.Select),
        adds=isinstance(clause, sa.Insert),
    )


def _compile(clause: ClauseElement, *, or_ignore: bool) -> tuple[str, dict[str, str]]:
    compiled = clause.compile(dialect=_DIALECT)
    assert isinstance(compiled, SQLCompiler)
    text = with_literals(compiled)
    if or_ignore:
        text = ignoring_conflicts(text, compiled)
    names = [name for name, bind in compiled.binds.items() if bind.required]
    types = _types(clause, compiled)
    return text, {name: _kind(name, types.get(name, []), text) for name in names}


def _types(
    clause: ClauseElement, compiled: SQLCompiler
) -> dict[str, list[sa.types.TypeEngine[Any]]]:
    """Return every type that each parameter is used with."""
    types: dict[str, list[sa.types.TypeEngine[Any]]] = {}

    def note(bind: BindParameter[Any], kind: sa.types.TypeEngine[Any]) -> None:
        if not isinstance(kind, sa.types.NullType):
            types.setdefault(bind.key, []).append(kind)

    for bind in compiled.binds.values():
        note(bind, bind.type)
    for element in visitors.iterate(clause):
        if isinstance(element, BindParameter):
            note(element, element.type)
        elif isinstance(element, FunctionElement | BinaryExpression):
            # coalesce(column, :parameter), :parameter + 1: of the same type, most likely.
            arguments = (
                list(element.clauses)
                if isinstance(element, FunctionElement)
                else [element.left, element.right]
            )
            typed = [a.type for a in arguments if not isinstance(a.type, sa.types.NullType)]
            for argument in arguments:
                if isinstance(argument, BindParameter) and typed:
                    note(argument, typed[0])
    return types


def _kind(name: str, types: Sequence[sa.types.TypeEngine[Any]], text: str) -> str:
    plain = [kind.impl if isinstance(kind, sa.types.TypeDecorator) else kind for kind in types]
    for of, kind in _KINDS:
        if any(isinstance(each, of) for each in plain):
            return kind
    if re.search(rf"\b(LIMIT|OFFSET)\s+:{name}\b", text):
        return "bigint"
    raise TypeError(f"the parameter {name!r} has no type: say bindparam({name!r}, type_=...)")


def _numbered(text: str, kinds: dict[str, str], suffix: str) -> tuple[str, tuple[str, ...]]:
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1]
        if name not in kinds:
            return match[0]
        return f"${numbers.setdefault(name, len(numbers) + 1)}::{kinds[name]}{suffix}"

    return re.sub(r"(?<![:\w]):(\w+)", number, text), tuple(numbers)


class _Batcher:
    """Rewrites one statement so that its parameters are rows."""

    def __init__(self, clause: ClauseElement, kinds: dict[str, str], *, or_ignore: bool) -> None:
        self._clause = clause
        self._kinds = kinds
        self._or_ignore = or_ignore
        self._given: TableValuedAlias = (
            sa.func.unnest(*(sa.bindparam(name, type_=ARRAY(sa.Text)) for name in kinds))
            .table_valued(*kinds, with_ordinality=_ORDINALITY)
            .render_derived(name="given")
        )
        self._ordinality: ColumnElement[Any] = self._given.c[_ORDINALITY]

    def batched(self) -> Batched | None:
        """Return the batched form, or None where there is none."""
        match self._clause:
            case sa.Select():
                return self._of_select(self._clause)
            case sa.Update() | sa.Delete():
                return self._of_change(self._clause)
            case sa.Insert() if type(self._clause) is sa.Insert:
                return self._of_insert(self._clause)
            case _:
                return None

    def _of_select(self, select: sa.Select[Any]) -> Batched | None:
        joined = self._joined(select)
        if joined is None:
            return None
        lock = select._for_update_arg  # noqa: SLF001  # there is no other way to ask
        if lock is not None and not select._order_by_clauses:  # noqa: SLF001  # likewise
            # Rows are locked in the order in which they come.
            joined = joined.order_by(self._ordinality)
        return Batched(
            *self._finished(joined.add_columns(self._ordinality)),
            Answers.BY_ORDINAL,
            sorted_by=() if lock is None else tuple(_equalities(select.whereclause).values()),
        )

    def _of_change(self, change: sa.Update | sa.Delete) -> Batched | None:
        apart_by = tuple(_equalities(change.whereclause).values())
        if not apart_by:
            return None
        joined = self._with_columns(change).returning(self._ordinality)
        return Batched(
            *self._finished(joined), Answers.BY_ORDINAL, apart_by=apart_by, sorted_by=apart_by
        )

    def _of_insert(self, insert: sa.Insert) -> Batched | None:
        table = insert.table
        returning = insert._returning  # noqa: SLF001  # there is no other way to ask
        rows: sa.Select[Any] | None
        if isinstance(insert.select, sa.Select):
            names = list(insert._select_names or ())  # noqa: SLF001  # likewise
            selected = [column["expr"] for column in insert.select.column_descriptions]
            known = _equalities(insert.select.whereclause)
            rows = self._joined(insert.select)
        elif insert.select is None and insert._values:  # noqa: SLF001  # likewise
            values = insert._values  # noqa: SLF001  # likewise
            names = [column if isinstance(column, str) else column.key for column in values]
            selected, known = list(values.values()), {}
            rows = sa.select(*(self._with_columns(value) for value in selected)).select_from(
                self._given
            )
        else:
            return None
        if rows is None:
            return None
        # Rows are inserted in this order, which is that of their serial numbers.
        rows = rows.order_by(self._ordinality)
        batched = sa.insert(table).from_select(names, rows, include_defaults=False).inline()
        if insert.select is None and not self._or_ignore:
            if returning:
                batched = batched.returning(*returning)
            return Batched(
                *self._finished(batched), Answers.BY_POSITION, returns_rows=bool(returning)
            )
        sources = {
            name: source.key if isinstance(source, BindParameter) else known[source.key]
            for name, source in zip(names, selected, strict=True)
            if (isinstance(source, BindParameter) and source.required)
            or (isinstance(source, sa.Column) and source.key in known)
        }
        unique = _unique_columns(table, sources)
        if unique is None:
            return None
        batched = batched.returning(*returning, *(table.c[name] for name in unique))
        key = tuple(sources[name] for name in unique)
        return Batched(*self._finished(batched), Answers.BY_KEY, key=key, sorted_by=key)

    def _joined(self, select: sa.Select[Any]) -> sa.Select[Any] | None:
        """Return a query over all sets of parameters; None where they are part of a FROM."""
        froms = select.get_final_froms()
        if any(_parameters(item) for item in froms):
            return None
        joined: sa.Select[Any] = self._with_columns(select)
        if self._given not in joined.get_final_froms():
            joined = joined.select_from(self._given)
        lock = select._for_update_arg  # noqa: SLF001  # there is no other way to ask
        if lock is not None and not lock.of:
            # The parameters cannot be locked, so what can be is named.
            joined = joined.with_for_update(
                nowait=lock.nowait,
                read=lock.read,
                of=froms,
                skip_locked=lock.skip_locked,
                key_share=lock.key_share,
            )
        return joined

    def _with_columns(self, element: Any) -> Any:
        def swap(part: Any, **_: Any) -> Any:
            if isinstance(part, BindParameter) and part.required:
                return self._given.c[part.key]
            if isinstance(part, sa.Select) and part is not element and _parameters(part):
                within = self._with_columns(part)
                # With one FROM more SQLAlchemy would take its only table for the outer one.
                alone = len(part.get_final_froms()) == 1
                return within.correlate(self._given) if alone else within
            return None

        return visitors.replacement_traverse(element, {}, swap)  # type: ignore[call-overload]  # any element

    def _finished(self, clause: ClauseElement) -> tuple[str, tuple[str, ...]]:
        compiled = clause.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)
        text = with_literals(compiled)
        if self._or_ignore:
            text = ignoring_conflicts(text, compiled)
        return _numbered(text, self._kinds, "[]")


def _parameters(element: ClauseElement) -> set[str]:
    return {
        part.key
        for part in visitors.iterate(element)
        if isinstance(part, BindParameter) and part.required
    }


def _equalities(where: ColumnElement[Any] | None) -> dict[str, str]:
    """Return the columns that have to be equal to a parameter: their name and the parameter's."""
    return dict(_each_equality(where)) if where is not None else {}


def _each_equality(where: ColumnElement[Any]) -> Iterator[tuple[str, str]]:
    if isinstance(where, BooleanClauseList) and where.operator is operators.and_:
        for part in where.clauses:
            yield from _each_equality(part)
    elif isinstance(where, BinaryExpression) and where.operator is operators.eq:
        for column, bind in ((where.left, where.right), (where.right, where.left)):
            if isinstance(column, sa.Column) and isinstance(bind, BindParameter) and bind.required:
                yield column.key, bind.key


def _unique_columns(table: Any, sources: dict[str, str]) -> list[str] | None:
    """Return columns that tell rows of a table apart and are all given by parameters."""
    constraints = [c for c in table.constraints if isinstance(c, sa.UniqueConstraint)]
    for constraint in (table.primary_key, *sorted(constraints, key=lambda c: len(c.columns))):
        names = [column.key for column in constraint.columns]
        # NULLs are distinct to a unique index.
        nullable = any(column.nullable for column in constraint.columns)
        if names and not nullable and all(name in sources for name in names):
            return names
    return None
