"""The engine: everything between a parsed request and the database."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nexusrpc import Content, HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import OperationHandlerMiddleware

from callbacks.database import Database
from callbacks.leases import Lease
from callbacks.signing_keys import CALLS, SigningKeys
from clients.service_names import ServiceNames
from handlers.asking import Asking, unknown_token
from handlers.calls import CallSettings
from handlers.cancelling import Cancelling
from handlers.claimer import Claimer, durable_here
from handlers.clock import Clock
from handlers.custom_operations import CustomOperations
from handlers.deadlines import Deadlines
from handlers.durable_runner import DurableRunner
from handlers.endings import Deliveries, Endings, ended_by, succeeded, succeeded_with
from handlers.engine_settings import EngineSettings
from handlers.hosting import Hosting
from handlers.inline import HandlerThreads
from handlers.open_calls import OpenCalls
from handlers.outgoing_calls import OutgoingCalls
from handlers.requests import OperationKey, Outcome, StartRequest, Succeeded
from handlers.services import Kind, ServiceRegistry
from handlers.starting import Starting
from handlers.stats import EngineStats
from handlers.store.operations import StoredOperation
from handlers.tracing import Tracing
from nexus_spec import OperationState, PayloadSerializer

__all__ = ["Engine", "EngineSettings", "unknown_token"]

# Proxies tend to cut requests that are silent for long.
_LONGEST_POLL_SECONDS = 20.0


class Engine:
    """Starts, runs, cancels and answers for every operation that the gateway serves.

    Args:
        services: What is served.
        database: Where operations live.
        deliveries: Where completions go.
        lease: Whether this process may own operations, and its name as their owner.
        serializer: Reads inputs and writes results.
        settings: Bounds.
        tracing: Spans, or nothing.
        middleware: nexusrpc middleware around inline and custom handlers.
        clock: The time.
        outgoing: The endpoints that handlers may call; none by default.
    """

    def __init__(
        self,
        services: ServiceRegistry,
        database: Database,
        deliveries: Deliveries,
        *,
        lease: Lease,
        serializer: PayloadSerializer | None = None,
        settings: EngineSettings | None = None,
        tracing: Tracing | None = None,
        middleware: Sequence[OperationHandlerMiddleware] = (),
        clock: Clock | None = None,
        outgoing: OutgoingCalls | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        clock = clock or Clock()
        self.services = services
        self.stats = EngineStats()
        self._database = database
        self._lease = lease
        self._serializer = serializer or PayloadSerializer()
        self._tracing = tracing or Tracing()
        self._handler_threads = HandlerThreads(settings.handler_threads)
        self._step_threads = ThreadPoolExecutor(
            settings.step_threads, thread_name_prefix="nexus-step"
        )
        self._endings = Endings(
            database,
            deliveries,
            self.stats,
            clock=clock,
            retention_ms=round(settings.retention.total_seconds() * 1000),
        )
        outgoing = outgoing or OutgoingCalls({}, SigningKeys(database, CALLS))
        self._open_calls = OpenCalls(database, outgoing, clock, seconds=settings.cleanup_seconds)
        self._endings.on_unattended = self._open_calls.cancel
        self._hosting = Hosting(self._serializer, self._handler_threads, middleware)
        self._deadlines = Deadlines(
            database,
            self._endings,
            clock,
            hosted=durable_here(services),
            grace_ms=round(lease.seconds * 2000) if database.shared else 0,
        )
        self._custom = CustomOperations(
            services,
            database,
            self._endings,
            self._deadlines,
            self._hosting,
            self._serializer,
            clock,
        )
        self._runner = DurableRunner(
            database,
            self._endings,
            self._serializer,
            self._step_threads,
            self._tracing,
            self.stats,
            lease=lease,
            clock=clock,
            on_ready=self._became_ready,
            on_paused=self._deadlines.watch,
            cleanup_seconds=settings.cleanup_seconds,
            suspend_after_seconds=settings.suspend_after_seconds,
            calls=CallSettings(
                outgoing=outgoing,
                serializer=self._serializer,
                tracing=self._tracing,
                poll_seconds=min(settings.suspend_after_seconds, _LONGEST_POLL_SECONDS),
                cancel_seconds=settings.cleanup_seconds / 3,
                names=ServiceNames(),
            ),
        )
        self._asking = Asking(database, self._endings, self._runner.is_live)
        self._starting = Starting(
            database,
            deliveries,
            self._hosting,
            self._custom,
            self._asking,
            launch=self._runner.launch,
            serializer=self._serializer,
            tracing=self._tracing,
            clock=clock,
            lease=lease,
        )
        self._cancelling = Cancelling(
            services, database, self._custom, self._endings, self._asking, clock
        )
        self._claimer = Claimer(
            database,
            services,
            self._runner,
            lease,
            self._deadlines,
            self.stats,
            clock,
            settings,
            is_starting=self._starting.is_recording,
        )
        database.subscribe(self._told)
        lease.on_lost(self._lost_lease)

    @property
    def live(self) -> int:
        """How many durable operations are in memory."""
        return self._runner.live

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Begin to take up, in the background, what nobody runs. The lease is open by now."""
        self._claimer.open()

    def release_waiters(self) -> None:
        """Answer everybody who waits for an operation: the server is about to stop."""
        self._endings.release()

    async def close(self, drain_seconds: float) -> None:
        """Let running steps end, hand the rest back, and stop."""
        self.release_waiters()
        await self._claimer.close()
        await self._runner.drain(drain_seconds)
        await self._open_calls.close()
        self._handler_threads.close()
        self._step_threads.shutdown(wait=False, cancel_futures=True)

    def _became_ready(self, run_at: int) -> None:
        self._claimer.due_at(run_at)

    def _lost_lease(self) -> None:
        # Others may run it all by now; what they have not taken is found as ours again.
        self._runner.abandon_all()

    def _told(self, channel: str, payload: str) -> None:
        match channel:
            case "wake":
                if self._runner.is_live(payload):
                    self._runner.wake(payload)
                else:
                    self._claimer.due_now()
            case "due":
                self._claimer.due_now()
            case "ended":
                self._endings.tell(payload)
            case "":
                self._endings.tell_all()
                self._runner.wake_all()
                self._claimer.missed()

    # ------------------------------------------------------------ start

    async def start(self, request: StartRequest) -> Outcome:
        """Start an operation, or find the one that the same request started before.

        Raises:
            HandlerError: NOT_FOUND, BAD_REQUEST for an unreadable input, CONFLICT where the
                request id belongs to another input, UNAVAILABLE where it cannot be recorded, or
                the handler's own.
            OperationError: The operation has ended, failed or canceled.
            ClientDisconnected: The caller hung up before an inline handler was done.

        Spec: SPEC.md#start-operation
        """
        key = request.key
        hosted = self.services.find(key.endpoint, key.service, key.operation)
        with self._tracing.start(key.service, key.operation, request.headers):
            value = self._hosting.read_input(hosted, request)
            if hosted.kind is Kind.INLINE:
                answer = await self._starting.start_inline(hosted, request, value)
            else:
                answer = await self._starting.start_recorded(hosted, request, value)
        self.stats.starts[key.endpoint, key.service, key.operation] += 1
        return answer

    # ------------------------------------------------------------ asking

    async def result(self, key: OperationKey, token: str, wait_seconds: float) -> Succeeded | None:
        """Return an operation's result; None while it runs, after waiting for it.

        Raises:
            HandlerError: NOT_FOUND.
            OperationError: The operation failed or was canceled.
        """
        return await self._asking.result(key, token, wait_seconds)

    async def state(self, key: OperationKey, token: str) -> OperationState:
        """Return an operation's state as its caller sees it.

        Raises:
            HandlerError: NOT_FOUND.
        """
        return await self._asking.state(key, token)

    # ------------------------------------------------------------ cancel and signal

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
        await self._cancelling.cancel(key, token, headers, request_timeout_seconds)

    async def cancel_by_operator(self, token: str) -> StoredOperation:
        """Ask an operation of any caller to end; one that nobody serves ends at once.

        Raises:
            HandlerError: NOT_FOUND, or as `cancel`.
        """
        return await self._cancelling.cancel_by_operator(token)

    async def signal(
        self, token: str, name: str, payload: bytes, dedupe_id: str | None = None
    ) -> bool:
        """Tell an operation what its handler waits for; return False for a repeated one.

        Args:
            token: The operation.
            name: What `ctx.wait_for` waits for: 1 to 200 characters, not beginning with `nexus.`.
            payload: JSON.
            dedupe_id: A second signal with the same name and id counts for nothing.

        Raises:
            HandlerError: BAD_REQUEST, NOT_FOUND, or CONFLICT for an operation that has ended.
        """
        return await self._cancelling.signal(token, name, payload, dedupe_id)

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

    async def resume(self, token: str) -> StoredOperation:
        """Run a paused operation again.

        Raises:
            HandlerError: NOT_FOUND; CONFLICT where it is not paused.
        """
        stored = await self._asking.load(token)
        hosted = self.services.get(stored.endpoint, stored.service, stored.operation)
        if hosted is None or hosted.kind is not Kind.DURABLE:
            raise HandlerError(
                "the operation has no durable handler here", type=HandlerErrorType.CONFLICT
            )
        if not await self._claimer.resume(stored, hosted):
            raise HandlerError(
                f"the operation is {stored.state}, not paused", type=HandlerErrorType.CONFLICT
            )
        return await self._asking.load(token)
