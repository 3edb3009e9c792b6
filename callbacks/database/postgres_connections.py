"""Connections to PostgreSQL: they say why they cannot be opened, and none is waited for forever."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg

from callbacks.database.errors import DatabaseError, DatabaseUnavailable, InvalidDatabaseUrl
from callbacks.database.lockstep import Connection

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 10.0
# The server gives up a statement before the client gives up the connection.
STATEMENT_SECONDS = 25
COMMAND_SECONDS = 30.0
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

_SETTINGS = {
    "application_name": "nexus-gateway",
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "jit": "off",
}
READER_SETTINGS = _SETTINGS | {"default_transaction_read_only": "on"}
WRITER_SETTINGS = _SETTINGS | {
    "synchronous_commit": "on",
    # Every statement of a write finds its rows by an index; sparing the planner the alternatives
    # halves the server's time (benchmarks/RESULTS.md).
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    # A process that was stopped in the middle of a transaction must not keep rows locked.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "10s",
}

# What changes the schema may take long, and waits for the transactions of running gateways.
MIGRATION_SETTINGS = _SETTINGS | {"statement_timeout": "0", "lock_timeout": "60s"}

_FATAL = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
)


class PostgresAddress:
    """Where a PostgreSQL database is, without its password wherever it is shown."""

    def __init__(self, url: str) -> None:
        """Read a URL.

        Raises:
            InvalidDatabaseUrl: It is none of PostgreSQL.
        """
        self.url = url
        self.shown = without_password(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidDatabaseUrl(
                f"{self.shown} is not a database URL: {error}; "
                "use postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            ) from error
        self.server = f"{parts.hostname or 'the local server'}" + (f":{port}" if port else "")
        self.user = unquote(parts.username or "")
        self.database = unquote(parts.path.lstrip("/"))

    async def connect(self, settings: Mapping[str, str]) -> Connection:
        """Open a connection.

        Raises:
            DatabaseUnavailable: The server cannot be reached, or takes no connections now.
            DatabaseError: It refuses this user or has no such database.
            InvalidDatabaseUrl: The URL's options make no sense.
        """
        try:
            return await asyncpg.connect(
                self.url,
                timeout=CONNECT_SECONDS,
                server_settings=dict(settings),
                statement_cache_size=1000,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError) as e:
            raise DatabaseError(f"PostgreSQL at {self.server} refuses the user: {_said(e)}") from e
        except asyncpg.InvalidCatalogNameError as error:
            raise DatabaseError(
                f"PostgreSQL at {self.server} has no database {self.database!r}; create it first"
            ) from error
        except TimeoutError as error:
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.server} does not answer within {CONNECT_SECONDS:g} s"
            ) from error
        except (*_FATAL, asyncpg.TooManyConnectionsError) as error:
            raise DatabaseUnavailable(
                f"cannot connect to PostgreSQL at {self.server}: {_said(error)}"
            ) from error
        except (asyncpg.ClientConfigurationError, ValueError) as error:
            raise InvalidDatabaseUrl(
                f"{self.shown} cannot be used: {_said(error).replace(self.url, self.shown)}"
            ) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseError(
                f"cannot connect to PostgreSQL at {self.server}: {_said(error)}"
            ) from error


def without_password(url: str) -> str:
    """Return a database URL as it may be shown: no password, no options."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    path = path.partition("?")[0]
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host.partition('?')[0]}{slash}{path}"


def is_lost(connection: Connection, error: BaseException) -> bool:
    """Whether an error means that the connection is gone."""
    return connection.is_closed() or isinstance(error, _FATAL)


@contextlib.asynccontextmanager
async def watched(connection: Connection, seconds: float = COMMAND_SECONDS) -> AsyncIterator[None]:
    """Drop a connection on which a command takes too long; whoever waits for it gets an error.

    asyncpg's own timeout would ask the server to cancel the command, and a server that does not
    answer does not answer to that either.
    """
    timer = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        yield
    finally:
        timer.cancel()


class Backoff:
    """How long to wait before the next attempt to connect."""

    def __init__(self) -> None:
        self._seconds = 0.0

    async def wait(self) -> None:
        """Wait, not at all at first and longer after each failure."""
        if self._seconds:
            await asyncio.sleep(self._seconds)

    def failed(self) -> None:
        """Wait longer from now on."""
        self._seconds = min(self._seconds * 2 or _FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)

    def succeeded(self) -> None:
        """Do not wait any more."""
        self._seconds = 0.0


class Readers:
    """A few connections for queries; the one used last is used next."""

    def __init__(self, address: PostgresAddress, *, most: int) -> None:
        self._address = address
        self._free = asyncio.Semaphore(most)
        self._idle: list[Connection] = []
        self._closed = False

    async def use(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a query on a connection, and once more where that turns out to be dead.

        Raises:
            DatabaseUnavailable: The server cannot be reached.
        """
        async with self._free:
            try:
                return await self._use_one(query)
            except DatabaseUnavailable:
                # The others were opened to the same server.
                self._terminate_idle()
                return await self._use_one(query)

    def close(self) -> None:
        """Drop the connections, each as soon as it is not in use."""
        self._closed = True
        self._terminate_idle()

    def _terminate_idle(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    def _give_back(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed:
            self._terminate_idle()

    async def _use_one(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        connection = (
            self._idle.pop() if self._idle else await self._address.connect(READER_SETTINGS)
        )
        try:
            async with watched(connection):
                answer = await query(connection)
        except Exception as error:
            if is_lost(connection, error):
                connection.terminate()
                raise DatabaseUnavailable(
                    f"lost the connection to PostgreSQL at {self._address.server}: {_said(error)}"
                ) from error
            self._give_back(connection)
            raise
        except BaseException:
            # Cancelled: what arrives next on it would be the answer to this query.
            connection.terminate()
            raise
        self._give_back(connection)
        return answer


def _said(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
