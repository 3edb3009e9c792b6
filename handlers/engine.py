"""The engine: starts, cancels and answers for every operation that the gateway serves."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from nexusrpc import (
    Content,
    HandlerError,
    HandlerErrorType,
    OperationError,
    OperationErrorState,
)
from nexusrpc.handler import OperationHandlerMiddleware, StartOperationResultSync

from callbacks.database import Row, SqliteDatabase, persist
from callbacks.outbox import Delivery
from handlers.clock import now_ms
from handlers.custom_operations import CustomOperations
from handlers.deadlines import Deadlines
from handlers.durable_runner import DurableRunner
from handlers.endings import (
    Deliveries,
    Endings,
    canceled,
    ended_by,
    ended_of,
    outcome,
    rendered_of,
    succeeded,
    succeeded_with,
)
from handlers.hosting import Hosting
from handlers.inline import HandlerThreads
from handlers.live_operation import LiveOperation, links_from_json, links_to_json
from handlers.records import State
from handlers.requests import OperationKey, Outcome, Started, StartRequest, Succeeded
from handlers.services import HostedOperation, Kind, ServiceRegistry
from handlers.stats import EngineStats
from handlers.store.operations import LOAD, OPEN_OPERATIONS, StoredOperation, read_operation
from handlers.store.running import RequestCancel
from handlers.store.starting import AddCallback, RecordStart
from handlers.tokens import new_token
from handlers.tracing import Tracing
from nexus_spec import OperationState, PayloadSerializer, UnencodableValue
from nexus_spec.json_text import json_text
from nexus_spec.limits import PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_LAST_MOMENT_MS = 253_402_300_799_000  # the end of the year 9999, which a datetime can still say

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How much the engine may use at a time.

    Attributes:
        handler_threads: Threads for `def` handlers; a start that finds all busy is UNAVAILABLE.
        step_threads: Threads for steps that are plain functions; further ones wait.
        cleanup_seconds: How long a handler may clean up after a cancel or its deadline.
        recovery_batch: How many operations a restart takes up at a time.
    """

    handler_threads: int = 32
    step_threads: int = 32
    cleanup_seconds: float = 60.0
    recovery_batch: int = 100


class Engine:
    """Everything between a parsed request and the database.

    Args:
        services: What is served.
        database: Where operations live.
        deliveries: Where completions go.
        serializer: Reads inputs and writes results.
        settings: Bounds.
        tracing: Spans, or nothing.
        middleware: nexusrpc middleware around inline and custom handlers.
    """

    def __init__(
        self,
        services: ServiceRegistry,
        database: SqliteDatabase,
        deliveries: Deliveries,
        *,
        serializer: PayloadSerializer | None = None,
        settings: EngineSettings | None = None,
        tracing: Tracing | None = None,
        middleware: Sequence[OperationHandlerMiddleware] = (),
    ) -> None:
        settings = settings or EngineSettings()
        self.services = services
        self.stats = EngineStats()
        self._settings = settings
        self._database = database
        self._deliveries = deliveries
        self._serializer = serializer or PayloadSerializer()
        self._tracing = tracing or Tracing()
        self._handler_threads = HandlerThreads(settings.handler_threads)
        self._step_threads = ThreadPoolExecutor(
            settings.step_threads, thread_name_prefix="nexus-step"
        )
        self._endings = Endings(database, deliveries, self.stats)
        self._hosting = Hosting(self._serializer, self._handler_threads, middleware)
        self._deadlines = Deadlines(database, self._endings)
        self._custom = CustomOperations(
            services, database, self._endings, self._deadlines, self._hosting, self._serializer
        )
        self._runner = DurableRunner(
            database,
            self._endings,
            self._deadlines,
            self._serializer,
            self._step_threads,
            self._tracing,
            self.stats,
            cleanup_seconds=settings.cleanup_seconds,
        )
        self._recovery: asyncio.Task[None] | None = None

    @property
    def live(self) -> int:
        """How many durable operations are in memory."""
        return self._runner.live

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Take up, in the background, what was running when the last process ended."""
        open_operations = await self._database.fetch(OPEN_OPERATIONS, {})
        self._recovery = asyncio.create_task(self._recover(open_operations))

    def release_waiters(self) -> None:
        """Answer everybody who waits for an operation: the server is about to stop."""
        self._endings.release()

    async def close(self, drain_seconds: float) -> None:
        """Let running steps end, hand the rest back, and stop."""
        self.release_waiters()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._runner.drain(drain_seconds)
        self._deadlines.close()
        self._handler_threads.close()
        self._step_threads.shutdown(wait=False, cancel_futures=True)

    async def _recover(self, open_operations: Sequence[Row]) -> None:
        due: list[tuple[str, HostedOperation, State]] = []
        for token, endpoint, service, operation, state, deadline_at in open_operations:
            hosted = self.services.get(endpoint, service, operation)
            if hosted is None:
                logger.warning(
                    "an operation waits for a handler that is not served",
                    extra={"token": token, "service": service, "operation": operation},
                )
                self._deadlines.watch(token, deadline_at)
            elif hosted.kind is not Kind.DURABLE or state == State.PAUSED:
                self._deadlines.watch(token, deadline_at)
            else:
                due.append((token, hosted, State(state)))
        if due:
            logger.info("continues operations of an earlier process", extra={"count": len(due)})
        # In batches, each one commit and one turn of the loop: new requests get theirs between.
        for batch in batched(due, self._settings.recovery_batch):
            claims = [self._runner.claim(*operation) for operation in batch]
            for answer in await asyncio.gather(*claims, return_exceptions=True):
                if isinstance(answer, Exception):
                    logger.error("cannot take up an operation", exc_info=answer)

    # ------------------------------------------------------------ start

    async def start(self, request: StartRequest) -> Outcome:
        """Start an operation, or find the one that the same request started before.

        Raises:
            HandlerError: NOT_FOUND, BAD_REQUEST for an unreadable input, CONFLICT where the
                request id belongs to another input, or the handler's own.
            OperationError: The operation has ended, failed or canceled.
            ClientDisconnected: The caller hung up before an inline handler was done.

        Spec: SPEC.md#start-operation
        """
        key = request.key
        hosted = self.services.find(key.endpoint, key.service, key.operation)
        with self._tracing.start(key.service, key.operation, request.headers):
            value = self._hosting.read_input(hosted, request)
            if hosted.kind is Kind.INLINE:
                answer = await self._start_inline(hosted, request, value)
            else:
                answer = await self._start_recorded(hosted, request, value)
        self.stats.starts[key.endpoint, key.service, key.operation] += 1
        return answer

    async def _start_inline(
        self, hosted: HostedOperation, request: StartRequest, value: Any
    ) -> Outcome:
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

    async def _start_recorded(
        self, hosted: HostedOperation, request: StartRequest, value: Any
    ) -> Outcome:
        token = new_token()
        created_at = now_ms()
        deadline_at = _deadline(hosted, request.operation_timeout, created_at)
        values = self._columns(request, token, created_at, deadline_at)
        recorded = self._database.write(RecordStart(values, request.callback))
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
            # Launched by the commit and not by this request, which may be cut off any moment.
            recorded.add_done_callback(partial(self._launch, operation))
        try:
            known = await asyncio.shield(recorded)
        except asyncio.CancelledError:
            if hosted.kind is Kind.CUSTOM:
                # Its handler will not be called, so nothing is to be found of it.
                await self._custom.forget(token)
            raise
        if known is None:
            if hosted.kind is Kind.CUSTOM:
                stored = await self._load(token)
                return await self._start_custom(hosted, request, stored, value)
            if not request.wait_seconds:
                return Started(token)
            return await self._outcome(token, request.wait_seconds)
        return await self._replay(hosted, request, known, values["input_hash"], value)

    async def _start_custom(
        self, hosted: HostedOperation, request: StartRequest, stored: StoredOperation, value: Any
    ) -> Outcome:
        began = time.monotonic()
        answer = await self._custom.start(hosted, request, stored, value)
        # The caller's patience covers the handler's own `start` too.
        wait_seconds = request.wait_seconds - (time.monotonic() - began)
        if isinstance(answer, Started) and wait_seconds > 0:
            return await self._outcome(stored.token, wait_seconds)
        return answer

    def _launch(
        self, operation: LiveOperation, recorded: asyncio.Future[StoredOperation | None]
    ) -> None:
        if recorded.exception() is None and recorded.result() is None:
            self._runner.launch(operation)

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
            known = await self._load(known.token)  # it may have ended meanwhile
        if known.state.ended:
            return outcome(ended_of(known), links_from_json(known.handler_links))
        if hosted.kind is Kind.CUSTOM and known.handler_token is None:
            return await self._start_custom(hosted, request, known, value)
        return await self._outcome(known.token, request.wait_seconds)

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
                        now_ms(),
                        completion,
                        self._deliveries.max_age_ms,
                    )
                )
                # Sent by the commit and not by this request, which may be cut off.
                added.add_done_callback(self._submit)
                deliveries = await asyncio.shield(added)
            except ValueError as error:
                raise HandlerError(str(error), type=HandlerErrorType.BAD_REQUEST) from None
            if deliveries is not None:
                return
            stored = await self._load(known.token)  # it ended meanwhile

    def _submit(self, added: asyncio.Future[list[Delivery] | None]) -> None:
        if added.exception() is None and (deliveries := added.result()):
            self._deliveries.submit(deliveries)

    def _columns(
        self, request: StartRequest, token: str, created_at: int, deadline_at: int | None
    ) -> dict[str, Any]:
        key = request.key
        return {
            "token": token,
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

    # ------------------------------------------------------------ asking

    async def result(self, key: OperationKey, token: str, wait_seconds: float) -> Succeeded | None:
        """Return an operation's result; None while it runs, after waiting for it.

        Raises:
            HandlerError: NOT_FOUND.
            OperationError: The operation failed or was canceled.
        """
        await self._authorized(key, token)
        answer = await self._outcome(token, wait_seconds)
        return answer if isinstance(answer, Succeeded) else None

    async def state(self, key: OperationKey, token: str) -> OperationState:
        """Return an operation's state as its caller sees it.

        Raises:
            HandlerError: NOT_FOUND.
        """
        stored = await self._authorized(key, token)
        return OperationState(stored.state.value if stored.state.ended else "running")

    async def _outcome(self, token: str, wait_seconds: float) -> Outcome:
        """Return how an operation ended, or that it runs, after waiting so long for its end."""
        if wait_seconds > 0:
            await self._until_end(token, wait_seconds)
        stored = await self._load(token)
        links = links_from_json(stored.handler_links)
        return outcome(ended_of(stored), links) if stored.state.ended else Started(token, links)

    async def _until_end(self, token: str, seconds: float) -> None:
        waiter = self._endings.will_end(token)
        try:
            # Registered first and read second: an end between the two is not missed.
            if not (await self._load(token)).state.ended:
                await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._endings.no_longer_waits(token, waiter)

    async def _load(self, token: str) -> StoredOperation:
        rows = await self._database.fetch(LOAD, {"token": token})
        if not rows:
            raise unknown_token()
        return read_operation(rows[0])

    async def _authorized(self, key: OperationKey, token: str) -> StoredOperation:
        stored = await self._load(token)
        if (stored.endpoint, stored.service, stored.operation, stored.caller) != (
            key.endpoint,
            key.service,
            key.operation,
            key.caller,
        ):
            # Not "forbidden": that would tell that the token exists.
            raise unknown_token()
        return stored

    # ------------------------------------------------------------ cancel

    async def cancel(
        self,
        key: OperationKey,
        token: str,
        headers: dict[str, str],
        request_timeout_seconds: float | None = None,
    ) -> None:
        """Ask an operation to end; asking again, or after its end, succeeds.

        Raises:
            HandlerError: NOT_FOUND; NOT_IMPLEMENTED for an inline operation, or where the
                handler cannot cancel.

        Spec: SPEC.md#cancel-operation
        """
        hosted = self.services.find(key.endpoint, key.service, key.operation)
        if hosted.kind is Kind.INLINE:
            raise HandlerError(
                "this operation answers with its result and cannot be canceled",
                type=HandlerErrorType.NOT_IMPLEMENTED,
            )
        stored = await self._authorized(key, token)
        if hosted.kind is Kind.CUSTOM:
            await self._custom.cancel(hosted, key, stored, headers, request_timeout_seconds)
        else:
            await self._cancel_durable(stored)

    async def _cancel_durable(self, stored: StoredOperation) -> None:
        if stored.state.ended or stored.cancel_requested_at is not None:
            return
        await persist(self._database, RequestCancel(stored.token, now_ms()))
        stored = await self._load(stored.token)  # it may have been paused meanwhile
        if stored.state is State.PAUSED:
            # Its code cannot be trusted to run: it ends without.
            self._deadlines.forget(stored.token)
            await self._endings.finish_stored(stored, canceled())
        else:
            self._runner.cancel(stored.token)

    # ------------------------------------------------------------ from outside

    async def complete(self, token: str, result: Any) -> bool:
        """End an operation that runs elsewhere with its result.

        Args:
            token: The operation's token, or the one that its handler returned.
            result: The result; a `nexusrpc.Content` is sent as it is.

        Returns:
            False where the operation has ended already.

        Raises:
            HandlerError: NOT_FOUND or CONFLICT.
        """
        content = isinstance(result, Content)
        ended = succeeded_with(result) if content else succeeded(result, self._serializer)
        return await self._custom.complete(token, ended)

    async def fail(self, token: str, message: str) -> bool:
        """End an operation that runs elsewhere as failed; otherwise as `complete`."""
        return await self._end_with_error(token, message, OperationErrorState.FAILED)

    async def complete_canceled(self, token: str, message: str = "operation canceled") -> bool:
        """End an operation that runs elsewhere as canceled; otherwise as `complete`."""
        return await self._end_with_error(token, message, OperationErrorState.CANCELED)

    async def _end_with_error(self, token: str, message: str, state: OperationErrorState) -> bool:
        return await self._custom.complete(token, ended_by(OperationError(message, state=state)))

    async def cancel_by_operator(self, token: str) -> StoredOperation:
        """Ask an operation of any caller to end.

        Raises:
            HandlerError: NOT_FOUND, or as `cancel`.
        """
        stored = await self._load(token)
        key = OperationKey(
            endpoint=stored.endpoint,
            service=stored.service,
            operation=stored.operation,
            caller=stored.caller,
        )
        await self.cancel(key, token, {})
        return await self._load(token)

    async def resume(self, token: str) -> StoredOperation:
        """Run a paused operation again.

        Raises:
            HandlerError: NOT_FOUND; CONFLICT where it is not paused.
        """
        stored = await self._load(token)
        hosted = self.services.get(stored.endpoint, stored.service, stored.operation)
        if hosted is None or hosted.kind is not Kind.DURABLE:
            raise HandlerError(
                "the operation has no durable handler here", type=HandlerErrorType.CONFLICT
            )
        if not await self._runner.claim(token, hosted, State.PAUSED):
            raise HandlerError(
                f"the operation is {stored.state}, not paused", type=HandlerErrorType.CONFLICT
            )
        return await self._load(token)


def unknown_token() -> HandlerError:
    """Return the error for a token that is no operation of this caller under this path."""
    return HandlerError("no such operation", type=HandlerErrorType.NOT_FOUND)


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


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield a sequence in pieces of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
