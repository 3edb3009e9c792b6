"""The handler of one operation, run as often as it takes until the operation has ended."""

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from nexusrpc import Content, HandlerError, OperationError, OperationErrorState

from callbacks.database import DatabaseClosed, Writer, persist
from handlers.calls import Calls, CallSettings
from handlers.clock import Clock
from handlers.context import DurableContext
from handlers.deadlines import TIMED_OUT
from handlers.endings import Ended, Endings, canceled, ended_by, failed, succeeded
from handlers.errors import Diverged, LeftMemory, StepArgumentsInvalid, StepError
from handlers.execution import Execution, Identity
from handlers.journal import Reason
from handlers.live_operation import LiveOperation
from handlers.presence import wake
from handlers.retry_policy import RetryPolicy
from handlers.steps import StepSettings
from handlers.store.running import Suspend, Suspended, pause, set_attempts
from nexus_spec import InvalidWireValue, PayloadSerializer, is_retryable

logger = logging.getLogger(__name__)

_HANDLER_RETRY = RetryPolicy(max_attempts=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residence:
    """What the memory of this process is asked and told of the operations in it.

    Attributes:
        is_draining: Whether nothing is to begin any more.
        look: Find out what happened to an operation from outside.
        forget: An operation is no longer this process's.
        on_ready: Told when an operation in nobody's memory is due (milliseconds since 1970).
        on_paused: Told the deadline of one that was paused.
    """

    is_draining: Callable[[], bool]
    look: Callable[[LiveOperation], None]
    forget: Callable[[LiveOperation], None]
    on_ready: Callable[[int], None]
    on_paused: Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRuns:
    """Runs handlers, judges how they end, and ends their operations.

    Attributes:
        database: Where operations and journals are.
        endings: Ends operations.
        serializer: Reads inputs and writes results.
        steps: What steps run with.
        clock: The time.
        residence: The memory of this process.
        cleanup_seconds: How long a handler may clean up after a cancel or its deadline.
        calls: What calls to other endpoints are made with.
        forced: The tasks that end operations whose handler does not.
    """

    database: Writer
    endings: Endings
    serializer: PayloadSerializer
    steps: StepSettings
    clock: Clock
    residence: Residence
    cleanup_seconds: float
    calls: CallSettings | None = None
    forced: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def run(self, operation: LiveOperation) -> None:
        """Run an operation to its end.

        Raises:
            LeftMemory: It goes on elsewhere, or later.
        """
        while True:
            if operation.gone or self.residence.is_draining():
                raise LeftMemory
            execution = operation.execution = self._new_execution(operation)
            ended = await self._run_once(operation, execution)
            if ended is not None:
                break
            await self._back_off(operation)
        await self._finish(operation, ended)

    def interrupt(self, operation: LiveOperation, reason: Reason) -> None:
        """Have an operation's handler end; why is noted in the operation already."""
        if operation.backoff is not None:
            wake(operation.backoff)  # the next run of the handler is interrupted instead
        elif operation.execution is not None:
            operation.execution.interrupt(reason)

    # ------------------------------------------------------------ one run

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
                return _interrupted(execution)
            # Not ours: the handler let a cancellation of its own escape.
            return await self._count_failure(operation)
        except Exception as error:  # noqa: BLE001  # logged and counted, or the operation's end
            if execution.interrupt_reason is Reason.DEADLINE:
                return failed(TIMED_OUT, detail=_trace())
            ended = _ended_by_handler(error)
            return ended if ended is not None else await self._count_failure(operation)
        if execution.interrupt_reason is Reason.DEADLINE:
            return failed(TIMED_OUT)
        return succeeded(value, self.serializer)

    async def _call_handler(self, operation: LiveOperation, execution: Execution) -> object:
        calls = None if self.calls is None else Calls(execution, operation, self.calls)
        context = DurableContext(execution, operation, calls)
        try:
            value = self._input(operation)
            try:
                result = await operation.hosted.durable.run(context, value)
            finally:
                if not execution.left:
                    execution.check_end()
        finally:
            # At once: a cancel that comes from here on is none of this run any more.
            execution.close()
            if execution.left:
                # Whatever the handler made of it.
                raise execution.diverged or LeftMemory() from None
        try:
            execution.check_awaited()
        except StepArgumentsInvalid as mistake:
            logger.error("%s", mistake, extra={"token": operation.token})  # noqa: TRY400
            raise
        return result

    def _new_execution(self, operation: LiveOperation) -> Execution:
        if operation.journal:
            operation.mailbox.forget_consumed(operation.journal)
        host = _Host(self, operation)
        execution = host.execution = Execution(
            Identity(operation.token, operation.epoch, operation.created_at),
            operation.journal,
            operation.mailbox,
            self.database,
            self.steps,
            self.clock,
            host=host,
            retries=operation,
        )
        if execution.ends_for is not None:
            # The journal leads it to its interruption; where that was no call of the context, the
            # limit does.
            host.interrupted()
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
            return self.serializer.decode(
                Content(headers=operation.content_headers, data=operation.input),
                operation.hosted.input_type,
            )
        except InvalidWireValue as error:
            raise _InputUnreadable(
                f"the recorded input no longer fits the operation's input type: {error}"
            ) from error

    # ------------------------------------------------------------ between runs

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
        run_at = self._next_run_at(operation)
        if not await persist(
            self.database,
            set_attempts(operation.token, operation.epoch, operation.attempts, run_at, detail),
        ):
            raise LeftMemory
        return None

    def _next_run_at(self, operation: LiveOperation) -> int:
        seconds = _HANDLER_RETRY.wait_seconds(operation.attempts)
        return self.clock.now_ms() + round(seconds * 1000)

    async def _back_off(self, operation: LiveOperation) -> None:
        if self._must_run(operation):
            return
        if _HANDLER_RETRY.wait_seconds(operation.attempts) > self.steps.suspend_after_seconds:
            await self._back_off_out_of_memory(operation)
            if self._must_run(operation):
                return
        operation.backoff = asyncio.get_running_loop().create_future()
        timer = self.clock.call_later(
            _HANDLER_RETRY.wait_seconds(operation.attempts), wake, operation.backoff
        )
        try:
            await operation.backoff
        finally:
            timer.cancel()
            operation.backoff = None

    async def _back_off_out_of_memory(self, operation: LiveOperation) -> None:
        suspend = _suspend(operation, self._next_run_at(operation))
        answer = await persist(self.database, suspend)
        if answer is Suspended.WOKEN:
            self.residence.look(operation)
            return
        if answer is Suspended.DONE and suspend.run_at is not None:
            self.suspended(operation, suspend.run_at)
        raise LeftMemory

    def _must_run(self, operation: LiveOperation) -> bool:
        return operation.gone or self.residence.is_draining() or _is_to_be_interrupted(operation)

    def suspended(self, operation: LiveOperation, run_at: int | None) -> None:
        """Take note that an operation is in nobody's memory."""
        self.residence.forget(operation)
        if run_at is not None:
            self.residence.on_ready(run_at)

    async def _pause(self, operation: LiveOperation, reason: str) -> Ended:
        """Pause an operation, or end it where it is to end anyway: its code is not run for that."""
        if not _is_to_end(operation):
            logger.error("operation paused: %s", reason, extra={"token": operation.token})
            paused = pause(operation.token, operation.epoch, storable(reason))
            if await persist(self.database, paused):
                operation.cancel_requested = True  # word of it is still on its way
            if not _is_to_end(operation):
                self.residence.forget(operation)  # not ours to hand back
                if operation.deadline_at is not None:
                    self.residence.on_paused(operation.deadline_at)
                raise LeftMemory
            # A cancel was recorded while the pause was.
            operation.paused = True
        return canceled() if operation.cancel_requested else failed(TIMED_OUT, detail=reason)

    # ------------------------------------------------------------ ending

    def limit_cleanup(self, operation: LiveOperation, execution: Execution) -> None:
        """Have a handler that was told to end do so in time."""
        operation.timers.append(
            self.clock.call_later(
                self.cleanup_seconds, partial(self._cleanup_is_over, operation, execution)
            )
        )

    def _cleanup_is_over(self, operation: LiveOperation, execution: Execution) -> None:
        if execution.closed or operation.task is None:
            return
        ended = _interrupted(execution)
        logger.error("the handler did not clean up in time", extra={"token": operation.token})
        execution.leave()
        # A task of its own: the handler's may hang for ever.
        task = asyncio.get_running_loop().create_task(self._end_by_force(operation, ended))
        self.forced.add(task)
        task.add_done_callback(self.forced.discard)

    async def _end_by_force(self, operation: LiveOperation, ended: Ended) -> None:
        try:
            await self._finish(operation, ended)
            if operation.ended:
                self.endings.on_unattended(operation.token)
        except DatabaseClosed:
            pass
        except Exception:
            logger.exception("cannot end the operation", extra={"token": operation.token})

    async def _finish(self, operation: LiveOperation, ended: Ended) -> None:
        operation.flush_progress()
        operation.ended = await self.endings.finish(
            operation.token,
            None if operation.paused else operation.epoch,
            ended,
            labels=_labels(operation),
            created_at=operation.created_at,
            links=operation.handler_links,
            trace_context=operation.trace_context,
        )


class _Host:
    """Where one operation goes when its run leaves memory."""

    __slots__ = ("_operation", "_run_at", "_runs", "execution")

    execution: Execution

    def __init__(self, runs: HandlerRuns, operation: LiveOperation) -> None:
        self._runs = runs
        self._operation = operation
        self._run_at: int | None = None

    def suspend(self, wake_at: int | None) -> "asyncio.Future[Suspended]":
        suspend = _suspend(self._operation, wake_at)
        self._run_at = suspend.run_at
        # Until it is known: the operation may be in nobody's memory, and taken by another process.
        return asyncio.ensure_future(persist(self._runs.database, suspend))

    def suspended(self) -> None:
        self._runs.suspended(self._operation, self._run_at)

    def woken(self) -> None:
        self._runs.residence.look(self._operation)

    def interrupted(self) -> None:
        self._runs.limit_cleanup(self._operation, self.execution)


class _InputUnreadable(Exception):
    pass


def _suspend(operation: LiveOperation, wake_at: int | None) -> Suspend:
    moments = [at for at in (wake_at, operation.deadline_at) if at is not None]
    return Suspend(operation.token, operation.epoch, min(moments, default=None), operation.wake_seq)


def _interrupted(execution: Execution) -> Ended:
    return canceled() if execution.ends_for is Reason.CANCEL else failed(TIMED_OUT)


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
    return storable(traceback.format_exc(limit=-20))


def storable(text: str) -> str:
    """Return a text as every database takes it: no lone surrogates, no NUL."""
    # A write with one of these would be tried again for ever.
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
