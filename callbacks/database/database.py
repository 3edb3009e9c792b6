"""What the gateway asks of a database, whichever it is."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from callbacks.database.statements import Row, Statement, Write

logger = logging.getLogger(__name__)

T = TypeVar("T")

Subscriber = Callable[[str, str], None]


def tell(subscribers: Sequence[Subscriber], channel: str, payload: str) -> None:
    """Call every subscriber; one that fails does not keep the others from hearing."""
    for subscriber in tuple(subscribers):
        try:
            subscriber(channel, payload)
        except Exception:
            logger.exception("a notification could not be taken", extra={"channel": channel})


class Database(Protocol):
    """An open database: a writer that commits in groups, queries, and notifications."""

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """Which database it is."""

    @property
    def shared(self) -> bool:
        """Whether other processes may work on it at the same time."""

    @property
    def batches(self) -> int:
        """How many transactions were committed."""

    @property
    def writes(self) -> int:
        """How many writes those transactions held."""

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Queue a write; the future has its answer once it is on the disk.

        Cancelling the future forgets the answer, never the write.

        Raises:
            DatabaseClosed: The store is closing.
        """

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query on what is committed and return its rows.

        Raises:
            DatabaseClosed: The store is closed.
            DatabaseUnavailable: The database does not answer.
        """

    def subscribe(self, callback: Subscriber) -> None:
        """Have a function called with (channel, payload) of what transactions notify.

        It is called on the event loop, after the commit, for the transactions of all processes,
        this one included; equal notifications of one transaction may arrive once. After
        `("", "")` anything may have been missed.
        """

    async def aclose(self) -> None:
        """Commit what waits, refuse what comes, and close."""
