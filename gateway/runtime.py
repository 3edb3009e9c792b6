"""The parts of a running gateway, and what handlers and programs may ask of it."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from nexusrpc.handler import OperationHandlerMiddleware

from callbacks.database import SqliteDatabase, Statement, sqlite_path
from callbacks.delivery import DeliveryService
from callbacks.sender import AiohttpSender
from gateway.access import Access
from gateway.schema import migrate
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from handlers.engine import Engine
from handlers.services import InvalidService, ServiceRegistry
from handlers.stats import Histogram
from nexus_spec import InvalidWireValue, PayloadSerializer, check_name

_PING = Statement(sa.select(sa.literal(1)))


class Gateway:
    """A gateway while it is open: `create_app(...).state.gateway`.

    Completing from outside works with the operation's token, or with the one that a handler of
    one's own returned:

        await app.state.gateway.complete(token, result)
    """

    def __init__(
        self,
        settings: Settings,
        services: ServiceRegistry,
        *,
        serializer: PayloadSerializer,
        middleware: Sequence[OperationHandlerMiddleware],
        telemetry: Telemetry | None = None,
    ) -> None:
        self.settings = settings
        services.check_types(serializer)
        self.services = services
        self._serializer = serializer
        self._middleware = middleware
        self._telemetry = telemetry
        self._parts: _Parts | None = None
        self.draining = False

    async def open(self) -> None:
        """Migrate and open the database, take up what was running, begin to deliver.

        Raises:
            DatabaseError: The database cannot be used; the message says what to do.
        """
        path = sqlite_path(self.settings.database)
        self._parts = _Parts(
            self.settings,
            self.services,
            path,
            self._serializer,
            self._middleware,
            self._telemetry or Telemetry(),
        )
        self.draining = False
        try:
            await self._parts.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Drain and close: running steps may end, the rest continues with the next process."""
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close(self.settings.drain_seconds)

    def release_waiters(self) -> None:
        """Answer everybody who waits for an operation: the server is about to stop."""
        self.draining = True
        if self._parts is not None:
            self._parts.engine.release_waiters()

    async def complete(self, token: str, result: Any) -> bool:
        """End an operation that runs elsewhere with its result.

        Returns:
            False where it has ended already.

        Raises:
            nexusrpc.HandlerError: NOT_FOUND; no operation has this token. CONFLICT; a durable
                handler runs it, or several handlers use this token.
        """
        return await self.parts.engine.complete(token, result)

    async def fail(self, token: str, message: str) -> bool:
        """End an operation that runs elsewhere as failed; otherwise as `complete`."""
        return await self.parts.engine.fail(token, message)

    async def cancel(self, token: str, message: str = "operation canceled") -> bool:
        """End an operation that runs elsewhere as canceled; otherwise as `complete`."""
        return await self.parts.engine.complete_canceled(token, message)

    @property
    def parts(self) -> "_Parts":
        """The open parts.

        Raises:
            RuntimeError: The gateway is not open: the app's lifespan has not run.
        """
        if self._parts is None:
            raise RuntimeError("the gateway is not open; run the app with its lifespan")
        return self._parts

    @property
    def is_open(self) -> bool:
        """Whether the gateway serves."""
        return self._parts is not None


class _Parts:
    def __init__(
        self,
        settings: Settings,
        services: ServiceRegistry,
        path: Path,
        serializer: PayloadSerializer,
        middleware: Sequence[OperationHandlerMiddleware],
        telemetry: Telemetry,
    ) -> None:
        self.telemetry = telemetry
        self.database = SqliteDatabase(path)
        try:
            migrate(path)
        except BaseException:
            self.database.close()
            raise
        self.delivery_seconds = Histogram()
        self.delivery = DeliveryService(
            self.database,
            AiohttpSender(
                settings.egress,
                connections_per_destination=settings.callbacks.per_destination,
            ),
            settings.delivery,
            observe=self.delivery_seconds.observe,
            around_attempt=self.telemetry.around_attempt,
        )
        self.engine = Engine(
            services,
            self.database,
            self.delivery,
            serializer=serializer,
            settings=settings.engine,
            tracing=self.telemetry.tracing,
            middleware=middleware,
        )
        self.access = Access(
            self.database,
            allow_unauthenticated=settings.allow_unauthenticated,
            public_url=settings.public_url,
        )

    async def open(self) -> None:
        await self.delivery.open()
        await self.engine.open()

    async def check_database(self) -> None:
        await self.database.fetch(_PING, {})

    async def close(self, drain_seconds: float) -> None:
        try:
            await self.engine.close(drain_seconds)
            await self.delivery.close(drain_seconds)
        finally:
            self.database.close()
            # It blocks while a collector does not answer.
            await asyncio.to_thread(self.telemetry.close)


def registry(
    services: Sequence[Any], endpoints: Mapping[str, Sequence[Any]] | None
) -> ServiceRegistry:
    """Return what is served: the endpoint `default` and the named ones.

    Raises:
        InvalidService: Something cannot be served.
    """
    if not isinstance(services, Sequence):
        raise InvalidService(f"services is a list of service handlers, not {services!r}")
    named = dict(endpoints or {})
    for name in named:
        try:
            check_name(name, "endpoint")
        except InvalidWireValue as error:
            raise InvalidService(f"endpoint {name!r} cannot be served: {error}") from error
    return ServiceRegistry({"default": [*services, *named.pop("default", ())], **named})
