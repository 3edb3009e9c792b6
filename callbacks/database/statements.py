"""SQL compiled once from the SQLModel tables, and the unit of work that runs it.

Compiling per call would cost more than the statement itself; compiled once and run on the
driver's own cursor it is as fast as hand-written SQL (benchmarks/RESULTS.md).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from sqlalchemy import Index, Table, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlmodel import SQLModel

from callbacks.database.literals import ignoring_conflicts, with_literals

if TYPE_CHECKING:
    from callbacks.database.postgres_sql import PostgresForms

Row = tuple[Any, ...]

ALONE = "*"
"""The subject of a write that shares a transaction with no other.

For one that locks rows which other writes lock at other moments of theirs: in one transaction two
processes would wait for each other.
"""

R_co = TypeVar("R_co", covariant=True)

_DIALECT = sqlite.dialect(paramstyle="named")


def table_of(model: type[SQLModel]) -> Table:
    """Return the table of a SQLModel class, to build statements from."""
    return cast("Table", model.__table__)  # type: ignore[attr-defined]  # set by SQLModel


def partial_index(name: str, *columns: str, where: str) -> Index:
    """Return an index of the rows for which a condition holds, on either database."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Statement:
    """A statement ready for the driver; parameters are given by name on each run."""

    __slots__ = (
        "_clause",
        "_correlated",
        "_or_ignore",
        "_postgres",
        "idempotent",
        "last",
        "sql",
    )

    def __init__(
        self,
        clause: ClauseElement,
        *,
        or_ignore: bool = False,
        idempotent: bool = False,
        last: bool = False,
        correlated: bool = False,
        on_postgres: ClauseElement | None = None,
    ) -> None:
        """Compile a statement.

        Args:
            clause: What it does.
            or_ignore: An insert skips rows that are there already.
            idempotent: Running it twice in a row is as good as once: writes of one transaction
                that run it with the same parameters at the same time may share one run.
            last: Where writes share a transaction, it runs when all of them have come to such a
                statement or to their end, sorted by its parameters: for rows that many writes
                lock, so that all processes lock them in one order and not for long.
            correlated: Its aggregates are those of correlated subqueries, the same whether it runs
                for one set of parameters or for many.
            on_postgres: Does the same on PostgreSQL, where `clause` would be slow or is not
                understood.
        """
        # Times are stored as integers (milliseconds since 1970, UTC) and documents as text or
        # bytes, so that parameters and rows need no conversion on the way.
        compiled = clause.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)
        self.sql = with_literals(compiled)
        if or_ignore:
            self.sql = ignoring_conflicts(self.sql, compiled)
        self.idempotent = idempotent
        self.last = last
        self._clause = clause if on_postgres is None else on_postgres
        self._or_ignore = or_ignore
        self._correlated = correlated
        self._postgres: PostgresForms | None = None

    @property
    def postgres(self) -> "PostgresForms":
        """The statement as PostgreSQL runs it, compiled when it is first asked for.

        Raises:
            TypeError: A parameter has no type.
        """
        if self._postgres is None:
            from callbacks.database.postgres_sql import postgres_forms

            self._postgres = postgres_forms(
                self._clause, or_ignore=self._or_ignore, correlated=self._correlated
            )
        return self._postgres

    def __repr__(self) -> str:
        return f"Statement({self.sql!r})"


class Transaction(Protocol):
    """What a write may do inside the transaction that commits it."""

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        """Run a statement and return how many rows it changed."""

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query, or a statement with RETURNING, and return its rows."""

    async def notify(self, channel: str, payload: str) -> None:
        """Tell every process on this database, once the transaction is committed."""


class Write(Protocol[R_co]):
    """One unit of work: all of it is committed, or none of it.

    `apply` runs inside a transaction shared with other writes and may run a second time when
    another write made the shared transaction fail, so it has no effect but on the database. It
    awaits nothing but the transaction.

    On PostgreSQL the writes of a transaction advance side by side, a statement each in turn, and
    so may see each other's changes half done, unless they have the same subject: that keeps them
    in different transactions, in the order in which they were queued.
    """

    @property
    def subject(self) -> str | None:
        """What the write changes, where two changes of it must not share a transaction."""

    async def apply(self, tx: Transaction) -> R_co:
        """Run the statements of this write and return its answer."""
