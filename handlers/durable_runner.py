"""Keeps durable operations running: from the commit of their start, or a restart, to their end."""

import asyncio
import logging
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nexusrpc import Content, HandlerError, OperationError, OperationErrorState

from callbacks.database import DatabaseClosed, SqliteDatabase, persist
from handlers.clock import now_ms
from handlers.context import DurableContext
from handlers.deadlines import TIMED_OUT, Deadlines
from handlers.endings import Ended, Endings, canceled, ended_by, failed, succeeded
from handlers.errors import Diverged, LeftMemory, StepArgumentsInvalid, StepError
from handlers.execution import Execution, Identity
from handlers.journal import Journal, Reason
from handlers.live_operation import LiveOperation
from handlers.records import State
from handlers.retry_policy import RetryPolicy
from handlers.services import HostedOperation
from handlers.stats import EngineStats
from handlers.store.claims import Claim
from handlers.store.journals import LOAD_JOURNAL, read_entry
from handlers.store.operations import LOAD, read_operation
from handlers.store.running import hand_back, pause, set_attempts
from handlers.tracing import Tracing
from nexus_spec import InvalidWireValue, PayloadSerializer, is_retryable

logger = logging.getLogger(__name__)

_HANDLER_RETRY = RetryPolicy(max_attempts=5)
_STOP_SECONDS = 1.0


class DurableRunner:
    """Runs the durable operations that this process owns.

    Args:
        database: Where operations and journals are.
        endings: Ends operations.
        deadlines: Watches those of paused operations.
        serializer: Reads inputs and writes results.
        threads: For steps that are plain functions.
        tracing: Spans, or nothing.
        stats: Counters.
        cleanup_seconds: How long a handler may clean up after a cancel or its deadline.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        endings: Endings,
        deadlines: Deadlines,
        serializer: PayloadSerializer,
        threads: ThreadPoolExecutor,
        tracing: Tracing,
        stats: EngineStats,
        *,
        cleanup_seconds: float,
    ) -> None:
        self._database = database
        self._endings = endings
        self._deadlines = deadlines
        self._serializer = serializer
        self._threads = threads
        self._tracing = tracing
        self._stats = stats
        self._cleanup_seconds = cleanup_seconds
        self._live: dict[str, LiveOperation] = {}
        self._forced: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._draining = False

    @property
    def live(self) -> int:
        """How many operations are in memory."""
        return len(self._live)

    def launch(self, operation: LiveOperation) -> None:
        """Run an operation whose start, or claim, is committed."""
        if self._draining:
            return  # it is in the database; the next process takes it up
        self._live[operation.token] = operation
        if operation.deadline_at is not None:
            left = (operation.deadline_at - now_ms()) / 1000
            if left <= 0:
                operation.deadline_passed = True  # before it takes another step
            else:
                timer = self._loop.call_later(left, self._deadline_passed, operation)
                operation.timers.append(timer)
        operation.task = self._loop.create_task(self._keep_running(operation))

    def cancel(self, token: str) -> None:
        """Interrupt an operation whose cancel request is committed."""
        operation = self._live.get(token)
        if operation is not None and not operation.cancel_requested:
            operation.cancel_requested = True
            self._interrupt(operation, Reason.CANCEL)

    async def claim(self, token: str, hosted: HostedOperation, state: State) -> bool:
        """Take up an operation from the database and run it.

        Returns:
            False where it is not in that state any more.
        """
        if not await persist(self._database, Claim(token, state)):
            return False
        self._deadlines.forget(token)
        stored = read_operation((await self._database.fetch(LOAD, {"token": token}))[0])
        entries = await self._database.fetch(LOAD_JOURNAL, {"token": token})
        journal = Journal(read_entry(row) for row in entries)
        operation = LiveOperation.load(stored, hosted, journal, self._database)
        if interrupt := journal.interrupt():
            operation.deadline_passed = interrupt.reason is Reason.DEADLINE
        self.launch(operation)
        return True

    async def drain(self, seconds: float) -> None:
        """Let running steps end, then hand back what is left for the next process.

        Args:
            seconds: How long running steps may take.
        """
        self._draining = True
        operations = list(self._live.values())
        busy = [
            operation
            for operation in operations
            if operation.execution is not None and operation.execution.in_step
        ]
        for operation in operations:
            if operation not in busy:
                self._leave(operation)
        ending = [operation.task for operation in busy if operation.task is not None]
        for operation in busy:
            assert operation.execution is not None
            operation.execution.leave_after_step()
        if ending:
            await asyncio.wait(ending, timeout=seconds)
        for operation in operations:
            self._leave(operation)
        left = [o.task for o in operations if o.task is not None and not o.task.done()]
        if left or self._forced:
            await asyncio.wait([*left, *self._forced], timeout=_STOP_SECONDS)
        await self._hand_back([o for o in operations if not o.ended])

    # ------------------------------------------------------------ one operation

    async def _keep_running(self, operation: LiveOperation) -> None:
        try:
            with self._tracing.run(
                operation.hosted.service,
                operation.hosted.operation,
                operation.token,
                operation.trace_context,
            ):
                await self._run_to_its_end(operation)
        except (LeftMemory, DatabaseClosed):
            pass
        except asyncio.CancelledError:
            if operation.execution is None or not operation.execution.closed:
                raise
        except Exception:
            # One that escaped would end with its task, unseen; the operation stays in the
            # database and runs again after a restart.
            logger.exception("cannot run the operation", extra={"token": operation.token})
        finally:
            if self._live.get(operation.token) is operation:
                del self._live[operation.token]
            operation.forget_timers()

    async def _run_to_its_end(self, operation: LiveOperation) -> None:
        while True:
            if self._draining:
                raise LeftMemory
            execution = operation.execution = self._new_execution(operation)
            ended = await self._run_once(operation, execution)
            if ended is not None:
                break
            await self._back_off(operation)
        await self._finish(operation, ended)

    async def _run_once(self, operation: LiveOperation, execution: Execution) -> Ended | None:
        """Run the handler; return how the operation ended, or None where it is to run again."""
        try:
            value = await self._call_handler(operation, execution)
        except Diverged as divergence:
            return await self._pause(operation, str(divergence))
        except _InputUnreadable as unreadable:
            return await self._pause(operation, str(unreadable))
        except asyncio.CancelledError:
            if execution.interrupt_reason is not None:
                return self._interrupted(execution)
            # Not ours: the handler let a cancellation of its own escape.
            return await self._count_failure(operation)
        except Exception as error:  # noqa: BLE001  # logged and counted, or the operation's end
            if execution.interrupt_reason is Reason.DEADLINE:
                return failed(TIMED_OUT, detail=_trace())
            ended = _ended_by_handler(error)
            return ended if ended is not None else await self._count_failure(operation)
        if execution.interrupt_reason is Reason.DEADLINE:
            return failed(TIMED_OUT)
        return succeeded(value, self._serializer)

    async def _call_handler(self, operation: LiveOperation, execution: Execution) -> object:
        context = DurableContext(execution, operation)
        try:
            return await operation.hosted.durable.run(context, self._input(operation))
        finally:
            # At once: a cancel that comes from here on is none of this run any more.
            execution.close()
            if execution.left:
                # Whatever the handler made of it.
                raise execution.diverged or LeftMemory() from None

    def _new_execution(self, operation: LiveOperation) -> Execution:
        execution = Execution(
            Identity(operation.token, operation.epoch, operation.created_at),
            operation.journal,
            self._database,
            self._threads,
            self._tracing,
            on_interrupted=lambda: self._limit_cleanup(operation, execution),
            on_step=self._stats.step.observe,
        )
        if execution.ends_for is not None:
            # The journal leads it to its interruption; where that was no call of the context, the
            # limit does.
            self._limit_cleanup(operation, execution)
        elif operation.cancel_requested:
            execution.interrupt(Reason.CANCEL)
        elif operation.deadline_passed:
            execution.interrupt(Reason.DEADLINE)
        return execution

    def _input(self, operation: LiveOperation) -> object:
        take, operation.first_input = operation.first_input, None
        if take is not None:
            return take()
        try:
            return self._serializer.decode(
                Content(headers=operation.content_headers, data=operation.input),
                operation.hosted.input_type,
            )
        except InvalidWireValue as error:
            raise _InputUnreadable(
                f"the recorded input no longer fits the operation's input type: {error}"
            ) from error

    async def _count_failure(self, operation: LiveOperation) -> Ended | None:
        detail = _trace()
        operation.attempts += 1
        logger.error(
            "handler failed\n%s",
            detail,
            extra={"token": operation.token, "attempt": operation.attempts},
        )
        if operation.attempts >= _HANDLER_RETRY.max_attempts:
            return failed("the operation's handler failed", detail=detail)
        run_at = now_ms() + round(_HANDLER_RETRY.wait_seconds(operation.attempts) * 1000)
        if not await persist(
            self._database,
            set_attempts(operation.token, operation.epoch, operation.attempts, run_at, detail),
        ):
            raise LeftMemory
        return None

    async def _back_off(self, operation: LiveOperation) -> None:
        if self._draining or _is_to_be_interrupted(operation):
            return
        operation.backoff = self._loop.create_future()
        timer = self._loop.call_later(
            _HANDLER_RETRY.wait_seconds(operation.attempts), _wake, operation.backoff
        )
        try:
            await operation.backoff
        finally:
            timer.cancel()
            operation.backoff = None

    async def _pause(self, operation: LiveOperation, reason: str) -> Ended:
        """Pause an operation, or end it where it is to end anyway: its code is not run for that."""
        if not _is_to_end(operation):
            logger.error("operation paused: %s", reason, extra={"token": operation.token})
            await persist(
                self._database, pause(operation.token, operation.epoch, _storable(reason))
            )
            if not _is_to_end(operation):
                operation.ended = True  # not ours to hand back
                self._deadlines.watch(operation.token, operation.deadline_at)
                raise LeftMemory
            # A cancel was recorded while the pause was.
            operation.paused = True
        return canceled() if operation.cancel_requested else failed(TIMED_OUT, detail=reason)

    # ------------------------------------------------------------ interruption

    def _deadline_passed(self, operation: LiveOperation) -> None:
        operation.deadline_passed = True
        self._interrupt(operation, Reason.DEADLINE)

    def _interrupt(self, operation: LiveOperation, reason: Reason) -> None:
        if operation.backoff is not None:
            _wake(operation.backoff)  # the next run of the handler is interrupted instead
        elif operation.execution is not None:
            operation.execution.interrupt(reason)

    def _interrupted(self, execution: Execution) -> Ended:
        return canceled() if execution.ends_for is Reason.CANCEL else failed(TIMED_OUT)

    def _limit_cleanup(self, operation: LiveOperation, execution: Execution) -> None:
        operation.timers.append(
            self._loop.call_later(
                self._cleanup_seconds, self._cleanup_is_over, operation, execution
            )
        )

    def _cleanup_is_over(self, operation: LiveOperation, execution: Execution) -> None:
        if execution.closed or operation.task is None:
            return
        ended = self._interrupted(execution)
        logger.error("the handler did not clean up in time", extra={"token": operation.token})
        execution.leave()
        # A task of its own: the handler's may hang for ever.
        task = self._loop.create_task(self._end_by_force(operation, ended))
        self._forced.add(task)
        task.add_done_callback(self._forced.discard)

    async def _end_by_force(self, operation: LiveOperation, ended: Ended) -> None:
        try:
            await self._finish(operation, ended)
        except DatabaseClosed:
            pass
        except Exception:
            logger.exception("cannot end the operation", extra={"token": operation.token})

    async def _finish(self, operation: LiveOperation, ended: Ended) -> None:
        operation.flush_progress()
        operation.ended = await self._endings.finish(
            operation.token,
            None if operation.paused else operation.epoch,
            ended,
            labels=_labels(operation),
            created_at=operation.created_at,
            links=operation.handler_links,
            trace_context=operation.trace_context,
        )

    # ------------------------------------------------------------ leaving memory

    def _leave(self, operation: LiveOperation) -> None:
        if operation.backoff is not None:
            _wake(operation.backoff)
        if operation.execution is not None:
            operation.execution.leave()

    async def _hand_back(self, operations: Sequence[LiveOperation]) -> None:
        writes = [self._database.write(hand_back(o.token, o.epoch)) for o in operations]
        for answer in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(answer, BaseException):
                # Not needed for safety: the next process takes up running operations as well.
                logger.warning("cannot hand an operation back", extra={"error": repr(answer)})


class _InputUnreadable(Exception):
    pass


def _labels(operation: LiveOperation) -> tuple[str, str, str]:
    hosted = operation.hosted
    return hosted.endpoint, hosted.service, hosted.operation


def _ended_by_handler(error: Exception) -> Ended | None:
    """Return the end that an exception of a handler means; None where the handler runs again."""
    match error:
        case OperationError():
            return ended_by(error)
        case StepArgumentsInvalid():
            # A mistake in the handler's code: the next run would make it again.
            return failed("the operation's handler failed", detail=_trace())
        case StepError():
            times = "once" if error.attempts == 1 else f"{error.attempts} times"
            return failed(f"step {error.step!r} failed {times}", detail=_trace())
        case HandlerError() if not is_retryable(error):
            wrapper = OperationError(error.message, state=OperationErrorState.FAILED)
            wrapper.__cause__ = error
            return ended_by(wrapper)
        case _:
            return None


def _is_to_end(operation: LiveOperation) -> bool:
    return operation.cancel_requested or operation.deadline_passed


def _is_to_be_interrupted(operation: LiveOperation) -> bool:
    return _is_to_end(operation) and operation.journal.interrupt() is None


def _trace() -> str:
    return _storable(traceback.format_exc(limit=-20))


def _storable(text: str) -> str:
    # A database takes no lone surrogates, and such a write would be tried again for ever.
    return text.encode("utf-8", "backslashreplace").decode()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
