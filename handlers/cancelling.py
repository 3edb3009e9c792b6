"""Asking operations to end, and telling them things, wherever they run."""

import secrets

from nexusrpc import HandlerError, HandlerErrorType

from callbacks.database import Database, persist
from handlers.asking import Asking, unknown_token
from handlers.clock import Clock
from handlers.custom_operations import CustomOperations
from handlers.endings import Endings, canceled
from handlers.records import State
from handlers.requests import OperationKey
from handlers.services import Kind, ServiceRegistry
from handlers.signal_names import fault_of_name, fault_of_text
from handlers.store.operations import StoredOperation
from handlers.store.outside import OWNER_IS_LIVE, RequestCancel
from handlers.store.signals import Received, RecordSignal


class Cancelling:
    """Cancels and signals operations; the process that runs one hears of it from the database.

    Args:
        services: What is served.
        database: Where operations are.
        custom: Cancels what runs elsewhere.
        endings: Ends what no handler runs.
        asking: Reads operations.
        clock: The time.
    """

    def __init__(
        self,
        services: ServiceRegistry,
        database: Database,
        custom: CustomOperations,
        endings: Endings,
        asking: Asking,
        clock: Clock,
    ) -> None:
        self._services = services
        self._database = database
        self._custom = custom
        self._endings = endings
        self._asking = asking
        self._clock = clock

    async def cancel(
        self,
        key: OperationKey,
        token: str,
        headers: dict[str, str],
        request_timeout_seconds: float | None,
    ) -> None:
        """Ask an operation to end; asking again, or after its end, succeeds.

        Raises:
            HandlerError: NOT_FOUND; NOT_IMPLEMENTED for an inline operation, or where the
                handler cannot cancel.
        """
        hosted = self._services.find(key.endpoint, key.service, key.operation)
        if hosted.kind is Kind.INLINE:
            raise HandlerError(
                "this operation answers with its result and cannot be canceled",
                type=HandlerErrorType.NOT_IMPLEMENTED,
            )
        stored = await self._asking.authorized(key, token)
        if hosted.kind is Kind.CUSTOM:
            await self._custom.cancel(hosted, key, stored, headers, request_timeout_seconds)
        else:
            await self._request(stored)

    async def cancel_by_operator(self, token: str) -> StoredOperation:
        """Ask an operation of any caller to end; one that nobody serves ends at once.

        Raises:
            HandlerError: NOT_FOUND, or as `cancel`.
        """
        stored = await self._asking.load(token)
        if self._services.get(stored.endpoint, stored.service, stored.operation) is None:
            stored = await self._request(stored)
            if not stored.state.ended and not await self._is_run_elsewhere(token):
                await self._endings.finish_stored(stored, canceled())
        else:
            key = OperationKey(
                endpoint=stored.endpoint,
                service=stored.service,
                operation=stored.operation,
                caller=stored.caller,
            )
            await self.cancel(key, token, {}, None)
        return await self._asking.load(token)

    async def _request(self, stored: StoredOperation) -> StoredOperation:
        if stored.state.ended:
            return stored
        if stored.cancel_requested_at is None:
            await persist(self._database, RequestCancel(stored.token, self._clock.now_ms()))
            stored = await self._asking.load(stored.token)  # it may have been paused meanwhile
        if stored.state is State.PAUSED:
            # Its code cannot be trusted to run: it ends without.
            await self._endings.finish_stored(stored, canceled())
            stored = await self._asking.load(stored.token)
        return stored

    async def _is_run_elsewhere(self, token: str) -> bool:
        return bool(await self._database.fetch(OWNER_IS_LIVE, {"token": token}))

    async def signal(
        self, token: str, name: str, payload: bytes, dedupe_id: str | None = None
    ) -> bool:
        """Tell an operation something that its handler waits for, or will wait for.

        Args:
            token: The operation.
            name: What `ctx.wait_for` waits for: 1 to 200 characters, no `/` or `#`.
            payload: JSON.
            dedupe_id: A second signal with the same name and id counts for nothing; without one,
                each counts.

        Returns:
            Whether it is new.

        Raises:
            HandlerError: BAD_REQUEST; the name or id cannot be used. NOT_FOUND; there is no such
                operation. CONFLICT; it has ended, or is none that takes signals.
        """
        fault = fault_of_name(name)
        if fault is None and dedupe_id is not None:
            fault = fault_of_text(dedupe_id, "a signal's id")
        if fault is not None:
            raise HandlerError(fault, type=HandlerErrorType.BAD_REQUEST)
        stored = await self._asking.load(token)
        hosted = self._services.get(stored.endpoint, stored.service, stored.operation)
        if hosted is not None and hosted.kind is not Kind.DURABLE:
            raise HandlerError(
                "the operation's handler runs elsewhere and takes no signals",
                type=HandlerErrorType.CONFLICT,
            )
        received = await persist(
            self._database,
            RecordSignal(
                token,
                name,
                # Made here: the write may be repeated.
                dedupe_id if dedupe_id is not None else f"auto-{secrets.token_hex(16)}",
                payload,
                self._clock.now_ms(),
            ),
        )
        if received is Received.UNKNOWN:
            raise unknown_token()
        if received is Received.ENDED:
            raise HandlerError("the operation has ended already", type=HandlerErrorType.CONFLICT)
        return received is Received.NEW
