"""A database that fails in any statement, before or after it did what it was asked."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from callbacks.database import (
    Database,
    DatabaseUnavailable,
    OutcomeUnknown,
    Row,
    Statement,
    Transaction,
    Write,
)
from callbacks.database.database import Subscriber

T = TypeVar("T")

_STATEMENTS = 4  # a write fails in one of its first so many, or at its end


class FaultyDatabase:
    """Another database, with faults.

    Args:
        database: The one that does the work.
        chance: Decides what fails.
        share: How much of each kind: writes that fail, writes whose answer is lost, queries.
    """

    def __init__(self, database: Database, chance: random.Random, share: float = 0.01) -> None:
        self.faults: Counter[str] = Counter()
        self.share = share
        self._database = database
        self._chance = chance

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """Which database it is."""
        return self._database.dialect

    @property
    def shared(self) -> bool:
        """Whether other processes may work on it at the same time."""
        return self._database.shared

    @property
    def batches(self) -> int:
        """How many transactions were committed."""
        return self._database.batches

    @property
    def writes(self) -> int:
        """How many writes those transactions held."""
        return self._database.writes

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Write, fail in the midst of it, or write and lose the answer."""
        fate = self._chance.random()
        if fate < self.share:
            self.faults[f"{type(write).__name__} failed"] += 1
            return self._database.write(_Failing(write, self._chance.randrange(_STATEMENTS)))
        written = self._database.write(write)
        if fate >= 2 * self.share:
            return written
        self.faults[f"{type(write).__name__} was committed unheard"] += 1
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def lose(done: asyncio.Future[T]) -> None:
            done.exception()  # whatever it was
            if not answer.done():
                answer.set_exception(OutcomeUnknown("the answer was lost"))

        written.add_done_callback(lose)
        return answer

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query, or fail."""
        if self._chance.random() < self.share:
            self.faults["query failed"] += 1
            raise DatabaseUnavailable("the query failed")
        return await self._database.fetch(statement, params)

    def subscribe(self, callback: Subscriber) -> None:
        """Have a function called with what transactions notify."""
        self._database.subscribe(callback)

    async def aclose(self) -> None:
        """Close."""
        await self._database.aclose()


@dataclass(frozen=True)
class _Failing:
    """A write of which one statement fails, as often as it is tried."""

    write: Write[Any]
    statement: int

    @property
    def subject(self) -> str | None:
        return self.write.subject

    async def apply(self, tx: Transaction) -> Any:
        await self.write.apply(_FailingTransaction(tx, self.statement))
        raise DatabaseUnavailable("the write failed at its end")


class _FailingTransaction:
    def __init__(self, transaction: Transaction, statements: int) -> None:
        self._transaction = transaction
        self._left = statements

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        self._count()
        return await self._transaction.execute(statement, params)

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        self._count()
        return await self._transaction.fetch(statement, params)

    async def notify(self, channel: str, payload: str) -> None:
        await self._transaction.notify(channel, payload)

    def _count(self) -> None:
        if self._left == 0:
            raise DatabaseUnavailable("a statement failed")
        self._left -= 1
