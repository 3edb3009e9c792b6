"""Asking operations to end, and telling them things, wherever they run."""

import secrets
import unicodedata

from nexusrpc import HandlerError, HandlerErrorType

from callbacks.database import Database, persist
from handlers.asking import Asking, unknown_token
from handlers.clock import Clock
from handlers.custom_operations import CustomOperations
from handlers.endings import Endings, canceled
from handlers.records import State
from handlers.requests import OperationKey
from handlers.services import Kind, ServiceRegistry
from handlers.store.operations import StoredOperation
from handlers.store.outside import OWNER_IS_LIVE, RequestCancel
from handlers.store.signals import Received, RecordSignal

RESERVED_NAMES = "nexus."
"""Names that begin so are of what the gateway itself says to operations."""

_NAME_CHARACTERS = 200


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
        if stored.state.ended or stored.cancel_requested_at is not None:
            return stored
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
        check_signal_name(name)
        if dedupe_id is not None:
            _check_text(dedupe_id, "a signal's id")
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


def check_signal_name(name: str) -> None:
    """Check that somebody outside may use a name for signals.

    Raises:
        HandlerError: BAD_REQUEST.
    """
    _check_text(name, "a signal's name")
    if "/" in name or "#" in name:  # no key of a journal may look like another's
        raise HandlerError(
            "a signal's name has no '/' and no '#'", type=HandlerErrorType.BAD_REQUEST
        )
    if name.startswith(RESERVED_NAMES):
        raise HandlerError(
            f"names that begin with {RESERVED_NAMES!r} are the gateway's own",
            type=HandlerErrorType.BAD_REQUEST,
        )


def _check_text(text: str, what: str) -> None:
    # Surrogates ("Cs") are what no database stores.
    if not 1 <= len(text) <= _NAME_CHARACTERS or any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text
    ):
        raise HandlerError(
            f"{what} has 1 to {_NAME_CHARACTERS} characters, and no control characters",
            type=HandlerErrorType.BAD_REQUEST,
        )
