"""One run of a durable handler over its operation's journal.

A call that the journal knows returns what was recorded; a new one happens and is recorded before
the handler sees its result. So the handler may run any number of times, in any number of
processes, and every step happens once.
"""

import asyncio
import contextvars
import inspect
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from nexusrpc import HandlerError, OperationError, OperationErrorState

from callbacks.database import Writer
from handlers.errors import LeftMemory, StepArgumentsInvalid, StepError
from handlers.journal import INTERRUPT_KEY, Interrupt, Journal, Kind, Reason
from handlers.operation_store import AppendJournal, JournalEntry
from handlers.retry_policy import RetryPolicy
from handlers.tracing import Tracing
from handlers.values import decode, encode, hash_arguments, result_type
from nexus_spec import failure_from_json, failure_of_error, failure_to_json
from nexus_spec.limits import PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_WRITE_RETRY_SECONDS = 1.0


@dataclass(eq=False)
class Scope:
    """The part of a handler that one asyncio task runs; it numbers the calls made in it.

    Branches of an `asyncio.gather` count on their own, or they would swap their results whenever
    they were scheduled in another order.
    """

    path: str
    task: "asyncio.Task[Any] | None"
    now_ms: int  # when the last call in this scope was recorded: the same on every run
    counters: dict[str, int] = field(default_factory=dict)
    branches: int = 0


_scope: contextvars.ContextVar[Scope] = contextvars.ContextVar("nexus_gateway_scope")


@dataclass(eq=False, slots=True)
class Identity:
    """What an execution must know of its operation to write for it."""

    token: str
    epoch: int
    created_at: int


class Execution:
    """Runs a handler once; `DurableContext` is the face that the handler sees of it."""

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        store: Writer,
        threads: Executor,
        tracing: Tracing,
        *,
        on_interrupted: Callable[[], None],
        on_step: Callable[[float], None],
    ) -> None:
        self.identity = identity
        self.interrupted = False
        self.closed = False
        self.left = False
        self._journal = journal
        self._store = store
        self._threads = threads
        self._tracing = tracing
        self._on_interrupted = on_interrupted
        self._on_step = on_step
        self._interrupt = journal.interrupt()
        self._pending: set[str] = set()
        self._steps = 0
        self._leaving = False
        self._waits: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._root = Scope("", task, identity.created_at)
        _scope.set(self._root)

    # ------------------------------------------------------------ what the engine asks for

    @property
    def interrupt_reason(self) -> Reason | None:
        """Why the handler was interrupted, once it was."""
        return self._interrupt.reason if self.interrupted and self._interrupt else None

    def interrupt(self, reason: Reason) -> None:
        """Record that the handler is to end, then raise `CancelledError` where it waits."""
        if self.closed or self._interrupt is not None:
            return
        entry = interrupt_entry(self._journal, reason, self._pending)
        self._interrupt = Interrupt(
            reason, entry.ordinal, frozenset(self._pending), entry.created_at
        )
        self._append_soon(entry).add_done_callback(self._interrupt_recorded)

    def leave(self) -> None:
        """Take the handler out of memory: from here on nothing that it does is recorded."""
        if self.closed:
            return
        self.closed = self.left = True
        for wait in self._waits:
            if not wait.done():
                wait.set_exception(LeftMemory())
        if not self._waits and asyncio.current_task() is not self._task:
            self._task.cancel()

    @property
    def in_step(self) -> bool:
        """Whether a function of the user is running, and not just waiting to be tried again."""
        return self._steps > 0

    def leave_after_step(self) -> None:
        """Take the handler out of memory as soon as the running steps are recorded."""
        self._leaving = True
        if self._steps == 0:
            self.leave()

    def close(self) -> None:
        """The handler has returned: a task that it left behind may record nothing more."""
        self.closed = True

    # ------------------------------------------------------------ calls of the handler

    async def step(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        name: str | None,
        retry: RetryPolicy | None,
        timeout: timedelta | None,
    ) -> Any:
        """Run a function once, ever; see `DurableContext.step`."""
        called = name or getattr(function, "__name__", "")
        if not called or "#" in called or "/" in called:
            raise StepArgumentsInvalid(
                f"{function!r} needs a name without '#' and '/': ctx.step(..., name='charge')"
            )
        is_async = inspect.iscoroutinefunction(function)
        if timeout is not None and not is_async:
            raise StepArgumentsInvalid(
                "a timeout needs an `async def` function: a thread cannot be interrupted"
            )
        args_hash = hash_arguments(args)
        scope, key = self._next_call(called)
        entry = self._recorded(key, Kind.STEP, args_hash)
        if self._is_interrupted_at(key, entry):
            await self._interrupt_here()
        if entry is None:
            self._pending.add(key)
            try:
                entry = await self._run_step(
                    key, function, args, args_hash, retry or RetryPolicy(), timeout, is_async
                )
            finally:
                self._pending.discard(key)
            if self._is_interrupted_at(key, entry):
                await self._interrupt_here()
        scope.now_ms = entry.created_at
        if entry.error is not None:
            raise _recorded_error(entry)
        assert entry.output is not None
        return decode(entry.output, result_type(function))

    async def sleep(self, duration: timedelta) -> None:
        """Wait; a restart does not begin the wait anew."""
        scope, key = self._next_call("sleep")
        entry = self._recorded(key, Kind.TIMER, None)
        if self._is_interrupted_at(key, entry):
            await self._interrupt_here()
        self._pending.add(key)
        try:
            if entry is None:
                now = now_ms()
                wake_at = now + max(0, round(duration.total_seconds() * 1000))
                entry = self._entry(key, Kind.TIMER, now, wake_at=wake_at)
                await self._append(entry)
            assert entry.wake_at is not None
            await self._wait((entry.wake_at - now_ms()) / 1000)
        finally:
            self._pending.discard(key)
        if self._is_interrupted_at(key, entry):
            await self._interrupt_here()
        scope.now_ms = max(scope.now_ms, entry.wake_at)

    def scope(self) -> Scope:
        """Return the scope of the calling task."""
        if self.closed:
            raise LeftMemory
        scope = _scope.get(None)
        if scope is None:
            raise RuntimeError("a DurableContext works only inside its own handler")
        task = asyncio.current_task()
        if scope.task is not task:
            scope.branches += 1
            scope = Scope(f"{scope.path}{scope.branches}/", task, scope.now_ms)
            _scope.set(scope)
        return scope

    # ------------------------------------------------------------ steps

    async def _run_step(
        self,
        key: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        args_hash: bytes,
        retry: RetryPolicy,
        timeout: timedelta | None,
        is_async: bool,
    ) -> JournalEntry:
        began = time.perf_counter()
        attempt = 1
        cancelled = False
        output: bytes | None = None
        error: str | None = None
        while True:
            self._steps += 1
            try:
                with self._tracing.step(key, attempt):
                    if is_async:
                        value = await self._call(function, args, timeout)
                    else:
                        value, cancelled = await self._call_on_thread(function, args)
                output = _checked(encode(value))
                break
            except asyncio.CancelledError:
                if self.closed:
                    raise LeftMemory from None
                raise
            except Exception as failure:  # noqa: BLE001  # a step may raise anything
                if cancelled or not retry.retries(failure, attempt):
                    error = _error_to_json(failure, attempt)
                    break
                logger.info(
                    "step failed and is tried again",
                    extra={
                        "token": self.identity.token,
                        "step": key,
                        "attempt": attempt,
                        "error": repr(failure),
                    },
                )
            finally:
                self._steps -= 1
            if self._leaving:
                self.leave()
                raise LeftMemory
            await self._wait(retry.wait_seconds(attempt))
            attempt += 1
        entry = self._entry(
            key,
            Kind.STEP,
            now_ms(),
            args_hash=args_hash,
            output=output,
            error=error,
            attempt=attempt,
        )
        await self._append(entry)
        self._on_step(time.perf_counter() - began)
        if self._leaving and self._steps == 0:
            self.leave()
            raise LeftMemory
        if cancelled:
            raise asyncio.CancelledError
        return entry

    async def _call(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout: timedelta | None
    ) -> Any:
        if timeout is None:
            return await function(*args)
        async with asyncio.timeout(timeout.total_seconds()):
            return await function(*args)

    async def _call_on_thread(
        self, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[Any, bool]:
        """Return the result, and whether the handler was cancelled meanwhile."""
        context = contextvars.copy_context()
        call = self._loop.run_in_executor(self._threads, partial(context.run, function, *args))
        try:
            return await asyncio.shield(call), False
        except asyncio.CancelledError:
            if self.closed:
                raise
            # A thread cannot be stopped: what it does counts, so its result is kept.
            await asyncio.wait([call])
            return call.result(), True

    # ------------------------------------------------------------ the journal

    def _next_call(self, name: str) -> tuple[Scope, str]:
        scope = self.scope()
        number = scope.counters.get(name, 0) + 1
        scope.counters[name] = number
        return scope, f"{scope.path}{name}#{number}"

    def _recorded(self, key: str, kind: Kind, args_hash: bytes | None) -> JournalEntry | None:
        return self._journal.find(key, kind, args_hash)

    def _entry(
        self,
        key: str,
        kind: Kind,
        created_at: int,
        *,
        args_hash: bytes | None = None,
        output: bytes | None = None,
        error: str | None = None,
        attempt: int = 1,
        wake_at: int | None = None,
    ) -> JournalEntry:
        return JournalEntry(
            key=key,
            ordinal=self._journal.next_ordinal(),
            kind=kind,
            args_hash=args_hash,
            output=output,
            error=error,
            attempt=attempt,
            wake_at=wake_at,
            created_at=created_at,
        )

    async def _append(self, entry: JournalEntry) -> None:
        while True:
            if self.closed:
                raise LeftMemory
            try:
                # Shielded: a cancel that arrives now must not lose what is being recorded.
                ours = await asyncio.shield(self._append_soon(entry))
            except asyncio.CancelledError:
                if self.closed:
                    raise LeftMemory from None
                raise
            except Exception:
                # Nothing was committed. The handler must not mistake that for a failure of its own.
                logger.exception(
                    "cannot write to the journal; trying again",
                    extra={"token": self.identity.token, "step": entry.key},
                )
                await self._wait(_WRITE_RETRY_SECONDS)
                continue
            if not ours:
                self.leave()
                raise LeftMemory
            return

    def _append_soon(self, entry: JournalEntry) -> asyncio.Future[bool]:
        written: asyncio.Future[bool] = self._store.write(
            AppendJournal(self.identity.token, self.identity.epoch, entry)
        )
        written.add_done_callback(partial(self._appended, entry))
        return written

    def _appended(self, entry: JournalEntry, written: asyncio.Future[bool]) -> None:
        if not written.cancelled() and written.exception() is None and written.result():
            self._journal.add(entry)

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        wait: asyncio.Future[None] = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, wait)
        self._waits.add(wait)
        try:
            await wait
        finally:
            self._waits.discard(wait)
            timer.cancel()

    # ------------------------------------------------------------ interruption

    def _is_interrupted_at(self, key: str, entry: JournalEntry | None) -> bool:
        if self.closed:
            raise LeftMemory
        return (
            self._interrupt is not None
            and not self.interrupted
            and self._interrupt.concerns(key, entry)
        )

    async def _interrupt_here(self) -> None:
        # Always through the handler's main task, so that a gather sees the same on every run.
        self._cancel_handler()
        await self._loop.create_future()

    def _interrupt_recorded(self, written: asyncio.Future[bool]) -> None:
        if self.closed or self.interrupted or written.cancelled():
            return
        if (error := written.exception()) is not None:
            # Not recorded, so not in force. The cancel request itself is in the database, and the
            # next run of the handler sees it.
            logger.error(
                "cannot record the cancellation",
                extra={"token": self.identity.token, "error": repr(error)},
            )
            self._interrupt = None
        elif written.result():
            self._cancel_handler()
        else:
            self.leave()

    def _cancel_handler(self) -> None:
        self.interrupted = True
        self._on_interrupted()
        self._task.cancel()


def interrupt_entry(journal: Journal, reason: Reason, pending: set[str]) -> JournalEntry:
    """Return the journal entry of a handler's interruption, here and now."""
    return JournalEntry(
        key=INTERRUPT_KEY,
        ordinal=journal.next_ordinal(),
        kind=Kind.INTERRUPT,
        args_hash=None,
        output=json.dumps({"reason": reason, "pending": sorted(pending)}).encode(),
        error=None,
        attempt=1,
        wake_at=None,
        created_at=now_ms(),
    )


def now_ms() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def _wake(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)


def _checked(output: bytes) -> bytes:
    if len(output) > PAYLOAD_BYTES:
        raise StepArgumentsInvalid(
            f"a step's result of {len(output)} bytes is over the limit of {PAYLOAD_BYTES}"
        )
    return output


def _error_to_json(error: Exception, attempts: int) -> str:
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "attempts": attempts,
    }
    if isinstance(error, OperationError):
        described["state"] = error.state.value
        described["failure"] = failure_to_json(failure_of_error(error))
    elif isinstance(error, HandlerError):
        described["handler_error"] = error.raw_error_type
    return json.dumps(described)


def _recorded_error(entry: JournalEntry) -> Exception:
    assert entry.error is not None
    described = json.loads(entry.error)
    if "state" in described:
        return OperationError(
            described["message"],
            state=OperationErrorState(described["state"]),
            original_failure=failure_from_json(described["failure"]),
        )
    return StepError(
        described["type"],
        described["message"],
        step=entry.key,
        attempts=described["attempts"],
    )
