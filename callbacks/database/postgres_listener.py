"""Hearing what transactions notify, of this process and of all others."""

import asyncio
import contextlib
import logging
from typing import Any, Self

import asyncpg

from callbacks.database.database import Subscriber, tell
from callbacks.database.errors import DatabaseError
from callbacks.database.lockstep import Connection
from callbacks.database.notifications import CHANNEL, read_message
from callbacks.database.postgres_connections import (
    READER_SETTINGS,
    Backoff,
    PostgresAddress,
    watched,
)

logger = logging.getLogger(__name__)

# How often a silent connection is asked whether it still is one.
_CHECKED_EVERY_SECONDS = 10.0


class Listener:
    """A connection that hears notifications, and is made again when it is lost."""

    def __init__(self, address: PostgresAddress) -> None:
        """Take an address; see `open`."""
        self._address = address
        self._subscribers: list[Subscriber] = []
        self._lost = asyncio.Event()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, address: PostgresAddress) -> Self:
        """Connect and listen.

        Raises:
            DatabaseError: It cannot connect.
        """
        listener = cls(address)
        await listener._connect()
        listener._task = asyncio.create_task(listener._stay_connected(), name="database listener")
        return listener

    def subscribe(self, callback: Subscriber) -> None:
        """Have a function called with what is heard, and `("", "")` after a gap."""
        self._subscribers.append(callback)

    async def aclose(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            self._connection.terminate()

    async def _connect(self) -> None:
        connection = await self._address.connect(READER_SETTINGS)
        lost = self._lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            async with watched(connection):
                await connection.add_listener(CHANNEL, self._heard)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            connection.terminate()
            raise DatabaseError(f"cannot listen at {self._address.server}: {error}") from error
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection

    async def _stay_connected(self) -> None:
        backoff = Backoff()
        while True:
            assert self._connection is not None
            await self._until_it_is_lost(self._connection)
            self._connection.terminate()
            logger.warning("lost the connection that hears notifications; connecting again")
            while True:
                await backoff.wait()
                try:
                    await self._connect()
                except DatabaseError as error:
                    logger.warning(
                        "cannot hear notifications; trying again", extra={"error": str(error)}
                    )
                    backoff.failed()
                else:
                    break
            backoff.succeeded()
            logger.info("hears notifications again")
            # Whatever was said in between was not heard.
            tell(self._subscribers, "", "")

    async def _until_it_is_lost(self, connection: Connection) -> None:
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECKED_EVERY_SECONDS):
                    await self._lost.wait()
                return
            try:
                async with watched(connection, _CHECKED_EVERY_SECONDS):
                    await connection.execute("SELECT 1")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
                return

    def _heard(self, _: Any, __: int, ___: str, payload: object) -> None:
        tell(self._subscribers, *read_message(str(payload)))
