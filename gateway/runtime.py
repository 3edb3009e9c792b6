"""The parts of a running gateway, and what handlers and programs may ask of it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import OperationHandlerMiddleware

from callbacks.database import Database, Statement
from callbacks.delivery import DeliveryService
from callbacks.egress import EgressPolicy
from callbacks.leases import Lease
from callbacks.sender import AiohttpSender
from callbacks.signing import Signer
from callbacks.signing_keys import CALLBACKS, CALLS, SigningKeys
from gateway.access import Access
from gateway.schema import open_with_schema
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from handlers.call_completions import CallCompletions
from handlers.engine import Engine
from handlers.outgoing_calls import OutgoingCalls
from handlers.services import InvalidService, ServiceRegistry
from handlers.stats import Histogram
from nexus_spec import InvalidWireValue, PayloadSerializer, UnencodableValue, check_name
from nexus_spec.content import JSON

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
        """Open the database and see to its schema, take up what was running, begin to deliver.

        Raises:
            DatabaseError: The database cannot be used; the message says what to do.
        """
        database = await open_with_schema(self.settings.database)
        try:
            self._parts = _Parts(
                self.settings,
                self.services,
                database,
                self._serializer,
                self._middleware,
                self._telemetry or Telemetry(),
            )
        except BaseException:
            await database.aclose()
            raise
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

    async def signal(
        self, token: str, name: str, payload: Any = None, dedupe_id: str | None = None
    ) -> bool:
        """Tell a durable operation what its handler waits for with `ctx.wait_for(name)`.

        Args:
            token: The operation's token.
            name: 1 to 200 characters, not beginning with `nexus.`.
            payload: What the handler gets.
            dedupe_id: A second signal with the same name and id counts for nothing.

        Returns:
            False for a repeated one.

        Raises:
            nexusrpc.HandlerError: BAD_REQUEST; the payload cannot be sent as JSON, or the name not
                be used. NOT_FOUND; no operation has this token. CONFLICT; it has ended.
        """
        return await self.parts.engine.signal(token, name, self._as_json(payload), dedupe_id)

    def _as_json(self, payload: Any) -> bytes:
        try:
            content = self._serializer.serialize(payload)
        except UnencodableValue as error:
            raise HandlerError(str(error), type=HandlerErrorType.BAD_REQUEST) from error
        if not content.headers:
            return b"null"
        if content.headers.get("content-type") != JSON:
            raise HandlerError("a signal carries JSON", type=HandlerErrorType.BAD_REQUEST)
        return content.data

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
        database: Database,
        serializer: PayloadSerializer,
        middleware: Sequence[OperationHandlerMiddleware],
        telemetry: Telemetry,
    ) -> None:
        self.telemetry = telemetry
        self.database = database
        self.lease = Lease(self.database, seconds=settings.lease_seconds)
        self.delivery_seconds = Histogram()
        notices = settings.notices
        self.delivery = DeliveryService(
            self.database,
            _sender(settings, settings.egress),
            settings.delivery,
            lease=self.lease,
            sign=Signer(SigningKeys(self.database, CALLBACKS)).headers,
            # Connections of one policy are of no use to the other: callers may not go where the
            # operator's own webhook is.
            notice_sender=None if notices is None else _sender(settings, notices.policy),
            observe=self.delivery_seconds.observe,
            around_attempt=self.telemetry.around_attempt,
        )
        keys = SigningKeys(self.database, CALLS)
        self.completions = CallCompletions(self.database, keys)
        self.calls = OutgoingCalls(settings.remote_endpoints, keys, public_url=settings.public_url)
        self.engine = Engine(
            services,
            self.database,
            self.delivery,
            lease=self.lease,
            serializer=serializer,
            settings=settings.engine,
            tracing=self.telemetry.tracing,
            middleware=middleware,
            outgoing=self.calls,
        )
        self.access = Access(
            self.database,
            allow_unauthenticated=settings.allow_unauthenticated,
            public_url=settings.public_url,
        )

    async def open(self) -> None:
        await self.lease.open()
        await self.delivery.open()
        await self.engine.open()

    async def check_database(self) -> None:
        await self.database.fetch(_PING, {})

    async def close(self, drain_seconds: float) -> None:
        try:
            await self.engine.close(drain_seconds)
            await self.calls.aclose()
            await self.delivery.close(drain_seconds)
            await self.lease.close()
        finally:
            await self.database.aclose()
            # It blocks while a collector does not answer.
            await asyncio.to_thread(self.telemetry.close)


def _sender(settings: Settings, policy: EgressPolicy) -> AiohttpSender:
    most = max(rule.concurrency for rule in settings.callbacks.rules.all)
    return AiohttpSender(
        policy, proxies=settings.callbacks.proxies, connections_per_destination=most
    )


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
