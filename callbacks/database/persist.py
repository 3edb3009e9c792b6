"""Writes that must not be given up: what they record has happened already."""

import asyncio
import logging
from typing import Any, Protocol, TypeVar

from callbacks.database.errors import DatabaseClosed
from callbacks.database.statements import Write

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 5.0


class Writer(Protocol):
    """Anything that commits writes."""

    def write(self, write: Write[Any]) -> asyncio.Future[Any]:
        """Queue a write; the future has its answer once it is on the disk."""


async def persist(database: Writer, write: Write[T]) -> T:
    """Commit a write, however long the database refuses it: a full disk is emptied one day.

    Raises:
        DatabaseClosed: The process is ending; the next one finds the state before the write.
    """
    wait_seconds = 0.1
    while True:
        try:
            answer: T = await asyncio.shield(database.write(write))
            return answer
        except DatabaseClosed:
            raise
        except Exception as error:  # noqa: BLE001  # whatever the driver raises
            logger.warning(
                "the database refuses a write; trying again",
                extra={"write": type(write).__name__, "error": repr(error)},
            )
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)
