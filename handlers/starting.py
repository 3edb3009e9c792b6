"""Starts: inline ones are answered, the others are recorded once and then run."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import StartOperationResultSync

from callbacks.database import Database, DatabaseClosed
from callbacks.leases import Lease
from callbacks.outbox import Delivery
from handlers.asking import Asking
from handlers.clock import Clock
from handlers.custom_operations import CustomOperations
from handlers.endings import Deliveries, ended_of, outcome, rendered_of
from handlers.hosting import Hosting
from handlers.live_operation import LiveOperation, links_from_json, links_to_json
from handlers.requests import Outcome, Started, StartRequest, Succeeded
from handlers.services import HostedOperation, Kind
from handlers.store.operations import StoredOperation
from handlers.store.starting import AddCallback, RecordStart
from handlers.tokens import new_token
from handlers.tracing import Tracing
from nexus_spec import PayloadSerializer, UnencodableValue
from nexus_spec.json_text import json_text
from nexus_spec.limits import PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_LAST_MOMENT_MS = 253_402_300_799_000  # the end of the year 9999, which a datetime can still say
_RECORDING_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.05


class Starting:
    """Starts operations, each recorded one once, whatever is repeated and whatever fails.

    Args:
        database: Where operations are.
        deliveries: Where completions go that a late callback asks for.
        hosting: Calls nexusrpc's own handlers.
        custom: Starts operations that run elsewhere.
        asking: Reads operations and waits for them.
        launch: Runs a durable operation whose start is committed.
        serializer: Writes the results of inline operations.
        tracing: Spans, or nothing.
        clock: The time.
        lease: This process, which runs what it starts, as long as it may.
    """

    def __init__(
        self,
        database: Database,
        deliveries: Deliveries,
        hosting: Hosting,
        custom: CustomOperations,
        asking: Asking,
        *,
        launch: Callable[[LiveOperation], None],
        serializer: PayloadSerializer,
        tracing: Tracing,
        clock: Clock,
        lease: Lease,
    ) -> None:
        self._database = database
        self._deliveries = deliveries
        self._hosting = hosting
        self._custom = custom
        self._asking = asking
        self._launch_operation = launch
        self._serializer = serializer
        self._tracing = tracing
        self._clock = clock
        self._lease = lease
        self._recording: set[str] = set()

    def is_recording(self, token: str) -> bool:
        """Whether the start of an operation is being written: it is nobody else's to take."""
        return token in self._recording

    # ------------------------------------------------------------ inline

    async def start_inline(
        self, hosted: HostedOperation, request: StartRequest, value: Any
    ) -> Outcome:
        """Answer with the handler's result; nothing is recorded."""
        result, links = await self._hosting.start(hosted, request, value)
        if not isinstance(result, StartOperationResultSync):
            raise TypeError(f"{hosted.service}/{hosted.operation} must answer with a result")
        try:
            content = self._serializer.serialize(result.value)
        except UnencodableValue as error:
            raise TypeError(f"{hosted.service}/{hosted.operation}: {error}") from error
        if len(content.data) > PAYLOAD_BYTES:
            # For good: a caller would otherwise ask again and again for what cannot be sent.
            raise HandlerError(
                f"the result of {len(content.data)} bytes is over the limit of "
                f"{PAYLOAD_BYTES} bytes",
                type=HandlerErrorType.INTERNAL,
                retryable_override=False,
            )
        return Succeeded(content, tuple(links))

    # ------------------------------------------------------------ recorded

    async def start_recorded(
        self, hosted: HostedOperation, request: StartRequest, value: Any
    ) -> Outcome:
        """Record a start and have it run, or answer as it was answered before.

        Raises:
            HandlerError: CONFLICT; the request id belongs to another input. UNAVAILABLE; the
                database does not take it. Or a custom handler's own.
            OperationError: The operation has ended, failed or canceled.
        """
        token = new_token()
        created_at = self._clock.now_ms()
        deadline_at = _deadline(hosted, request.operation_timeout, created_at)
        values = self._columns(hosted, request, token, created_at, deadline_at)
        write = RecordStart(values, request.callback)
        operation = None
        if hosted.kind is Kind.DURABLE:
            operation = LiveOperation(
                token=token,
                hosted=hosted,
                caller=request.key.caller,
                request_id=request.request_id,
                headers=request.headers,
                content_headers=request.content_headers,
                links=request.links,
                input=request.body,
                deadline_at=deadline_at,
                trace_context=values["trace_context"],
                created_at=created_at,
                store=self._database,
                first_input=lambda: value,
            )
        if operation is None or not request.wait_seconds:
            try:
                known = await self._record(write, operation)
            except asyncio.CancelledError:
                if hosted.kind is Kind.CUSTOM:
                    # Its handler will not be called, so nothing is to be found of it.
                    await self._custom.forget(token)
                raise
            if known is None and operation is not None:
                return Started(token)
        else:
            # Before it is written: it may have ended when the start goes on from here.
            waiter = self._asking.expect(token)
            try:
                known = await self._record(write, operation)
                if known is None:
                    return await self._asking.outcome(token, request.wait_seconds, waiter)
            finally:
                self._asking.forget(token, waiter)
        if known is not None:
            return await self._replay(hosted, request, known, values["input_hash"], value)
        stored = await self._asking.load(token)
        return await self._start_custom(hosted, request, stored, value)

    async def _record(
        self, write: RecordStart, operation: LiveOperation | None
    ) -> StoredOperation | None:
        """Write a start; return the operation that has its request id already, if there is one.

        Raises:
            HandlerError: UNAVAILABLE; the database refused it for a while. Where a refusal was a
                commit all the same, the claimer finds the operation.
        """
        until: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await asyncio.shield(self._recorded(write, operation))
            except DatabaseClosed as error:
                raise _not_recorded() from error
            except Exception as error:
                now = time.monotonic()
                until = until if until is not None else now + _RECORDING_SECONDS
                if now >= until:
                    raise _not_recorded() from error
                logger.warning("the database refuses a start", extra={"error": repr(error)})
            await asyncio.sleep(pause)
            pause *= 2

    def _recorded(
        self, write: RecordStart, operation: LiveOperation | None
    ) -> asyncio.Future[StoredOperation | None]:
        token = str(write.values["token"])
        # Before it is queued: from its commit on it is in the database as ours.
        self._recording.add(token)
        term = self._lease.term
        try:
            recorded = self._database.write(write)
        except BaseException:
            self._recording.discard(token)
            raise
        # Launched by the commit and not by the request, which may be cut off any moment.
        recorded.add_done_callback(partial(self._launch, token, term, operation))
        return recorded

    def _launch(
        self,
        token: str,
        term: int,
        operation: LiveOperation | None,
        recorded: asyncio.Future[StoredOperation | None],
    ) -> None:
        self._recording.discard(token)
        if recorded.cancelled() or recorded.exception() is not None:
            return
        if operation is None or recorded.result() is not None:
            return
        # Where the lease was lost meanwhile another process may have it by now; if not, it is
        # found as ours again.
        if self._lease.kept_since(term):
            self._launch_operation(operation)

    async def _start_custom(
        self, hosted: HostedOperation, request: StartRequest, stored: StoredOperation, value: Any
    ) -> Outcome:
        began = time.monotonic()
        answer = await self._custom.start(hosted, request, stored, value)
        # The caller's patience covers the handler's own `start` too.
        wait_seconds = request.wait_seconds - (time.monotonic() - began)
        if isinstance(answer, Started) and wait_seconds > 0:
            return await self._asking.outcome(stored.token, wait_seconds)
        return answer

    # ------------------------------------------------------------ repeated

    async def _replay(
        self,
        hosted: HostedOperation,
        request: StartRequest,
        known: StoredOperation,
        input_hash: bytes,
        value: Any,
    ) -> Outcome:
        """Answer a request whose id is known: the same again, or a conflict."""
        if known.input_hash != input_hash:
            raise HandlerError(
                "this request id was used with another input; use a new Nexus-Request-Id",
                type=HandlerErrorType.CONFLICT,
            )
        if request.callback is not None:
            await self._add_callback(request, known)
            known = await self._asking.load(known.token)  # it may have ended meanwhile
        if known.state.ended:
            return outcome(ended_of(known), links_from_json(known.handler_links))
        if hosted.kind is Kind.CUSTOM and known.handler_token is None:
            return await self._start_custom(hosted, request, known, value)
        return await self._asking.outcome(known.token, request.wait_seconds)

    async def _add_callback(self, request: StartRequest, known: StoredOperation) -> None:
        assert request.callback is not None
        stored = known
        while True:
            completion = rendered_of(stored) if stored.state.ended else None
            try:
                added = self._database.write(
                    AddCallback(
                        known.token,
                        request.callback,
                        self._clock.now_ms(),
                        completion,
                        self._deliveries,
                    )
                )
                # Sent by the commit and not by this request, which may be cut off.
                added.add_done_callback(self._submit)
                deliveries = await asyncio.shield(added)
            except ValueError as error:
                raise HandlerError(str(error), type=HandlerErrorType.BAD_REQUEST) from None
            if deliveries is not None:
                return
            stored = await self._asking.load(known.token)  # it ended meanwhile

    def _submit(self, added: asyncio.Future[list[Delivery] | None]) -> None:
        if not added.cancelled() and added.exception() is None and (sent := added.result()):
            self._deliveries.submit(sent)

    # ------------------------------------------------------------ what is recorded

    def _columns(
        self,
        hosted: HostedOperation,
        request: StartRequest,
        token: str,
        created_at: int,
        deadline_at: int | None,
    ) -> dict[str, Any]:
        key = request.key
        return {
            "token": token,
            # A custom operation runs elsewhere: nobody here can lose it.
            "owner": self._lease.id if hosted.kind is Kind.DURABLE else None,
            "endpoint": key.endpoint,
            "service": key.service,
            "operation": key.operation,
            "caller": key.caller,
            "request_id": request.request_id,
            "input_hash": _fingerprint(request),
            "input": request.body,
            "content_headers": json_text(dict(request.content_headers)),
            "headers": json_text(dict(request.headers)),
            "deadline_at": deadline_at,
            "links": links_to_json(request.links),
            "trace_context": self._tracing.traceparent(request.headers),
            "created_at": created_at,
        }


def _not_recorded() -> HandlerError:
    return HandlerError(
        "the operation cannot be recorded at the moment; try again",
        type=HandlerErrorType.UNAVAILABLE,
    )


def _fingerprint(request: StartRequest) -> bytes:
    digest = hashlib.sha256(request.body)
    for name, value in sorted(request.content_headers.items()):
        if name != "content-length":
            digest.update(f"\n{name}:{value}".encode("utf-8", "surrogateescape"))
    return digest.digest()


def _deadline(hosted: HostedOperation, asked: timedelta | None, now: int) -> int | None:
    limits = [asked] if asked else []
    if hosted.kind is Kind.DURABLE and hosted.durable.timeout is not None:
        limits.append(hosted.durable.timeout)
    if not limits:
        return None
    return min(now + round(min(limits).total_seconds() * 1000), _LAST_MOMENT_MS)
