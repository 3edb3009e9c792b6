"""PostgreSQL: several processes, one database, a writer connection in each."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeVar

import asyncpg

from callbacks.database.database import Subscriber
from callbacks.database.errors import (
    DatabaseClosed,
    DatabaseError,
    DatabaseUnavailable,
    OutcomeUnknown,
)
from callbacks.database.lockstep import Connection, WriteFailed, apply_together, run_single
from callbacks.database.notifications import commit_with
from callbacks.database.postgres_connections import (
    WRITER_SETTINGS,
    Backoff,
    PostgresAddress,
    Readers,
    is_lost,
    watched,
)
from callbacks.database.postgres_listener import Listener
from callbacks.database.statements import Row, Statement, Write
from callbacks.database.writer import GroupCommit

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READERS = 4
# How many bad writes a batch is freed of, one after the other, before each goes alone.
_BAD_WRITES = 3
# How often a write is tried again that only lost against another transaction.
_CONFLICTS = 5


class PostgresDatabase:
    """One PostgreSQL database, which other processes may work on at the same time.

    Writes go through one connection, in groups; the writes of a group advance side by side (see
    `lockstep`). Where a group fails, its writes run one by one, and each is told its own error.
    """

    dialect: Final[Literal["postgresql"]] = "postgresql"
    shared: Final = True

    def __init__(self, address: PostgresAddress, writer: Connection, listener: Listener) -> None:
        """Take open connections; see `open`."""
        self._address = address
        self._connection: Connection | None = writer
        self._backoff = Backoff()
        self._listener = listener
        self._readers = Readers(address, most=_READERS)
        self._writer = GroupCommit(self._commit, subjects_apart=True)
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to a database.

        Raises:
            DatabaseError: It cannot be reached or used; the message says why.
        """
        address = PostgresAddress(url)
        writer = await address.connect(WRITER_SETTINGS)
        try:
            listener = await Listener.open(address)
        except BaseException:
            writer.terminate()
            raise
        return cls(address, writer, listener)

    @property
    def batches(self) -> int:
        """How many groups of writes were committed."""
        return self._writer.batches

    @property
    def writes(self) -> int:
        """How many writes they held."""
        return self._writer.writes

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Queue a write; the future has its answer once it is on the disk."""
        return self._writer.write(write)

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query on what is committed and return its rows.

        Raises:
            DatabaseClosed: The store is closed.
            DatabaseUnavailable: The server cannot be reached.
        """
        if self._closed:
            raise DatabaseClosed("the store is closed")
        return await self._readers.use(lambda connection: run_single(connection, statement, params))

    def subscribe(self, callback: Subscriber) -> None:
        """Have a function called with (channel, payload) of what transactions notify."""
        self._listener.subscribe(callback)

    async def aclose(self) -> None:
        """Commit what waits, refuse what comes, and disconnect."""
        await self._writer.aclose()
        self._closed = True
        await self._listener.aclose()
        self._readers.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with watched(connection, 1.0):
                    await connection.close()

    # ------------------------------------------------------------ committing

    async def _commit(self, writes: Sequence[Write[Any]]) -> list[Any]:
        answers: list[Any] = [None] * len(writes)
        together = list(range(len(writes)))
        alone: list[int] = []
        conflicts = 0
        while len(together) > 1:
            try:
                for number, answer in zip(
                    together, await self._transact([writes[n] for n in together]), strict=True
                ):
                    answers[number] = answer
                together = []
            except DatabaseUnavailable as error:
                return [error] * len(writes)
            except WriteFailed as failed:
                alone.append(together.pop(failed.number))
                if len(alone) == _BAD_WRITES:
                    break
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                conflicts += 1  # with another process: none of them is to blame
                if conflicts == _CONFLICTS:
                    break
            except Exception:  # noqa: BLE001  # which of them it is shows when they run alone
                break
        unavailable: DatabaseUnavailable | None = None
        for number in sorted(together + alone):
            # Without a connection none of the others would fare better.
            answers[number] = unavailable or await self._commit_alone(writes[number])
            if isinstance(answers[number], DatabaseUnavailable):
                unavailable = answers[number]
        return answers

    async def _commit_alone(self, write: Write[Any]) -> Any:
        conflicts = 0
        while True:
            try:
                return (await self._transact([write]))[0]
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                conflicts += 1
                if conflicts == _CONFLICTS:
                    return error
            except WriteFailed as failed:
                return failed.error
            except Exception as error:  # noqa: BLE001  # the write is told
                return error

    async def _transact(self, writes: Sequence[Write[Any]]) -> list[Any]:
        """Commit writes in one transaction.

        Raises:
            OutcomeUnknown: The connection was lost during COMMIT.
            DatabaseUnavailable: It could not be made, or was lost before; nothing was written.
            WriteFailed: One of the writes failed; nothing was written.
            asyncpg.PostgresError: A statement failed; nothing was written.
        """
        connection = await self._connected()
        committing = False
        try:
            async with watched(connection):
                await connection.execute("BEGIN")
                answers, messages = await apply_together(connection, writes)
                committing = True
                status = await connection.execute(commit_with(messages))
            if status != "COMMIT":
                raise DatabaseError("the transaction was rolled back")
        except Exception as error:
            lost = is_lost(connection, error)
            if not lost:
                lost = not await _rolled_back(connection)
                committing = False
            if lost:
                self._drop(connection)
            if not is_lost(connection, error):
                raise
            where = f"PostgreSQL at {self._address.server}"
            logger.warning("lost the connection to the database", extra={"error": str(error)})
            if committing:
                raise OutcomeUnknown(
                    f"lost the connection to {where} during COMMIT: {error}"
                ) from error
            raise DatabaseUnavailable(f"lost the connection to {where}: {error}") from error
        except BaseException:
            self._drop(connection)
            raise
        return answers

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        await self._backoff.wait()
        try:
            self._connection = await self._address.connect(WRITER_SETTINGS)
        except DatabaseUnavailable:
            self._backoff.failed()
            raise
        except DatabaseError as error:
            # It worked when the gateway started, so this may pass as well.
            self._backoff.failed()
            raise DatabaseUnavailable(str(error)) from error
        self._backoff.succeeded()
        logger.info("connected to the database again")
        return self._connection

    def _drop(self, connection: Connection) -> None:
        connection.terminate()
        self._connection = None


async def _rolled_back(connection: Connection) -> bool:
    try:
        async with watched(connection):
            await connection.execute("ROLLBACK")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True
