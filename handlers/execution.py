"""One run of a durable handler over its operation's journal.

A call that the journal knows returns what was recorded; a new one happens and is recorded before
the handler sees its result. So the handler may run any number of times, in any number of
processes, and every step happens once.
"""

import asyncio
import contextvars
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import WeakSet

from nexusrpc import HandlerError, OperationError, OperationErrorState
from nexusrpc._util import is_async_callable

from callbacks.database import Writer
from handlers.clock import now_ms
from handlers.errors import Diverged, LeftMemory, StepArgumentsInvalid, StepError
from handlers.journal import INTERRUPT_KEY, Interrupt, Journal, Kind, Reason
from handlers.retry_policy import RetryPolicy
from handlers.store.journals import AppendJournal, JournalEntry
from handlers.tracing import Tracing
from handlers.values import check_function, decode, encode, hash_arguments, is_miscall, result_type
from nexus_spec import failure_from_json, failure_of_error, failure_to_json
from nexus_spec.limits import PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_WRITE_RETRY_SECONDS = 1.0
_IDLE_SECONDS = 0.2
_QUIET_TURNS = 8


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
class _Call:
    """A step's function with all that an attempt needs."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    args_hash: bytes
    retry: RetryPolicy
    timeout: timedelta | None
    is_async: bool
    result_type: Any


@dataclass(eq=False, slots=True)
class _Attempt:
    """What one attempt of a step brought: a result or an error."""

    output: bytes | None
    failure: Exception | None
    cancelled: bool  # the handler was cancelled meanwhile, and the function did not give in


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
        self.diverged: Diverged | None = None
        self._journal = journal
        self._store = store
        self._threads = threads
        self._tracing = tracing
        self._on_interrupted = on_interrupted
        self._on_step = on_step
        self._interrupt = journal.interrupt()
        self._interrupt_write: asyncio.Future[bool] | None = None
        self._pending: set[str] = set()
        self._steps = 0
        self._leaving = False
        self._waits: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}
        self._branches: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._root = Scope("", task, identity.created_at)
        _scope.set(self._root)
        self._calls = 0
        self._halts: list[asyncio.Future[None]] = []
        self._settling = False
        if self._interrupt is not None:
            self._interrupt_where_it_waits()

    # ------------------------------------------------------------ what the engine asks for

    @property
    def interrupt_reason(self) -> Reason | None:
        """Why the handler was interrupted, once it was."""
        return self._interrupt.reason if self.interrupted and self._interrupt else None

    @property
    def ends_for(self) -> Reason | None:
        """Why the handler is to end, also where it has not come to its interruption yet."""
        return self._interrupt.reason if self._interrupt else None

    def interrupt(self, reason: Reason) -> None:
        """Record that the handler is to end, then raise `CancelledError` where it waits.

        What begins before that is recorded waits for it; no further step begins.
        """
        if self.closed or self._interrupt is not None:
            return
        entry = interrupt_entry(self._journal, reason, self._pending)
        self._interrupt = Interrupt(
            reason, entry.ordinal, frozenset(self._pending), entry.created_at
        )
        self._interrupt_write = self._append_soon(entry)
        self._interrupt_write.add_done_callback(partial(self._interrupt_recorded, reason))

    def leave(self) -> None:
        """Take the handler out of memory: from here on nothing that it does is recorded."""
        if self.closed:
            return
        self.closed = self.left = True
        # Where a call of ours waits, in a branch or not, the cancellation comes out as LeftMemory.
        waiting = list(self._waits.items())
        for wait, _ in waiting:
            wait.cancel()
        main_waits = any(task is self._task for _, task in waiting)
        if not main_waits and asyncio.current_task() is not self._task:
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
        for wait in list(self._waits):
            wait.cancel()
        for branch in list(self._branches):
            # It would run on beside the handler's next run, and do the same things twice.
            branch.cancel()

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
        check_function(function)
        called = name or getattr(function, "__name__", "")
        if not called or "#" in called or "/" in called:
            raise StepArgumentsInvalid(
                f"{function!r} needs a name without '#' and '/': ctx.step(..., name='charge')"
            )
        is_async = is_async_callable(function)
        if timeout is not None and not is_async:
            raise StepArgumentsInvalid(
                "a timeout needs an `async def` function: a thread cannot be interrupted"
            )
        args_hash = hash_arguments(args)
        declared = result_type(function)
        scope, key = self._next_call(called)
        entry = self._recorded(key, Kind.STEP, args_hash)
        try:
            if self._is_interrupted_at(key, entry):
                await self._interrupt_here()
            if entry is None:
                call = _Call(
                    function, args, args_hash, retry or RetryPolicy(), timeout, is_async, declared
                )
                self._pending.add(key)
                try:
                    entry = await self._run_step(key, call)
                finally:
                    self._pending.discard(key)
                if self._is_interrupted_at(key, entry):
                    await self._interrupt_here()
        except asyncio.CancelledError:
            self._raise_if_left()
            raise
        scope.now_ms = entry.created_at
        if entry.error is not None:
            raise _recorded_error(entry)
        assert entry.output is not None
        try:
            return decode(entry.output, declared)
        except ValueError as error:
            raise self._diverge(
                Diverged(f"the recorded result of {key!r} does not fit {declared}: {error}")
            ) from error

    async def sleep(self, duration: timedelta) -> None:
        """Wait; a restart does not begin the wait anew."""
        if not isinstance(duration, timedelta):
            raise StepArgumentsInvalid(
                f"ctx.sleep takes a timedelta, not {duration!r}: timedelta(seconds=5)"
            )
        scope, key = self._next_call("sleep")
        entry = self._recorded(key, Kind.TIMER, None)
        try:
            if self._is_interrupted_at(key, entry):
                await self._interrupt_here()
            self._pending.add(key)
            try:
                if entry is None:
                    await self._hold_if_leaving()
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
        except asyncio.CancelledError:
            self._raise_if_left()
            raise
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
            if task is not None:
                self._branches.add(task)
        return scope

    # ------------------------------------------------------------ steps

    async def _run_step(self, key: str, call: _Call) -> JournalEntry:
        began = time.perf_counter()
        number = 1
        entry: JournalEntry | None = None
        while True:
            await self._hold_if_leaving()
            self._steps += 1
            try:
                attempt = await self._try(key, call, number)
                if self._is_last(attempt, call, number):
                    # Part of the step: what is running when the process drains is also recorded.
                    entry = await self._record_step(key, call, attempt, number)
            finally:
                self._steps -= 1
            if entry is not None:
                if attempt.failure is not None:
                    logger.warning(
                        "step failed",
                        extra={
                            "token": self.identity.token,
                            "step": key,
                            "attempt": number,
                            "error": repr(attempt.failure),
                        },
                    )
                break
            logger.info(
                "step failed and is tried again",
                extra={
                    "token": self.identity.token,
                    "step": key,
                    "attempt": number,
                    "error": repr(attempt.failure),
                },
            )
            await self._hold_if_leaving()
            await self._wait(call.retry.wait_seconds(number))
            number += 1
        self._on_step(time.perf_counter() - began)
        await self._hold_if_leaving()
        if attempt.cancelled:
            raise asyncio.CancelledError
        return entry

    async def _try(self, key: str, call: _Call, number: int) -> _Attempt:
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        output: bytes | None = None
        failure: Exception | None = None
        with self._tracing.step(key, number):
            try:
                if call.is_async:
                    value = await self._call(call)
                else:
                    value = await self._call_on_thread(call)
                output = _checked(encode(value, call.result_type))
            except Exception as error:  # noqa: BLE001  # recorded, or logged and tried again
                failure = error
                if isinstance(error, TypeError) and is_miscall(call.function, call.args):
                    failure = StepArgumentsInvalid(str(error))  # as wrong the next time
        return _Attempt(output, failure, cancelled=task.cancelling() > cancels)

    def _is_last(self, attempt: _Attempt, call: _Call, number: int) -> bool:
        failure = attempt.failure
        return (
            failure is None
            or attempt.cancelled
            # A result that cannot be recorded: the next one could not either.
            or isinstance(failure, StepArgumentsInvalid)
            or not call.retry.retries(failure, number)
        )

    async def _record_step(
        self, key: str, call: _Call, attempt: _Attempt, number: int
    ) -> JournalEntry:
        failure = attempt.failure
        entry = self._entry(
            key,
            Kind.STEP,
            now_ms(),
            args_hash=call.args_hash,
            output=attempt.output,
            error=None if failure is None else _error_to_json(failure, number),
            attempt=number,
        )
        await self._append(entry)
        return entry

    async def _call(self, call: _Call) -> Any:
        if call.timeout is None:
            return await call.function(*call.args)
        async with asyncio.timeout(call.timeout.total_seconds()):
            return await call.function(*call.args)

    async def _call_on_thread(self, call: _Call) -> Any:
        context = contextvars.copy_context()
        work = partial(context.run, _returning, call.function, *call.args)
        running = self._loop.run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if self.closed:
                raise
            # A thread cannot be stopped: what it does counts, so its result is kept.
            await asyncio.wait([running])
            return running.result()

    # ------------------------------------------------------------ the journal

    def _next_call(self, name: str) -> tuple[Scope, str]:
        scope = self.scope()
        self._calls += 1
        number = scope.counters.get(name, 0) + 1
        scope.counters[name] = number
        return scope, f"{scope.path}{name}#{number}"

    def _recorded(self, key: str, kind: Kind, args_hash: bytes | None) -> JournalEntry | None:
        try:
            return self._journal.find(key, kind, args_hash)
        except Diverged as divergence:
            raise self._diverge(divergence) from None

    def _diverge(self, divergence: Diverged) -> Diverged:
        """Leave at once: neither a `finally` block nor another branch may do anything more."""
        self.diverged = divergence
        self.leave()
        return divergence

    def _entry(
        self,
        key: str,
        kind: Kind,
        created_at: int,
        *,
        args_hash: bytes | None = None,
        output: bytes | None = None,
        error: str | None = None,
        ref: str | None = None,
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
            ref=ref,
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
        try:
            await self._until(wait)
        finally:
            timer.cancel()

    async def _until(self, wait: asyncio.Future[None]) -> None:
        self._waits[wait] = asyncio.current_task()
        try:
            await wait
        finally:
            del self._waits[wait]
        if self.closed:
            raise LeftMemory

    async def _hold_if_leaving(self) -> None:
        """While the handler leaves, nothing new begins; what other branches run may end."""
        if self.closed:
            raise LeftMemory
        if not self._leaving:
            return
        if self._steps > 0:
            await self._until(self._loop.create_future())
        self.leave()
        raise LeftMemory

    def _raise_if_left(self) -> None:
        if self.left:
            raise LeftMemory

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
        halt: asyncio.Future[None] = self._loop.create_future()
        self._halts.append(halt)
        if self._interrupt_write is None or self._interrupt_write.done():
            self._settle()
        await self._until(halt)
        # The cancellation arrives here, unless the main task does not wait for this one. Then it
        # went on when this happened first, and goes on now.
        await asyncio.sleep(0)
        if self.closed:
            raise LeftMemory

    def _interrupt_recorded(self, reason: Reason, written: asyncio.Future[bool]) -> None:
        if self.closed or written.cancelled():
            return
        if (error := written.exception()) is not None:
            # Not recorded, so not in force: what goes on until the next try counts.
            logger.error(
                "cannot record the cancellation",
                extra={"token": self.identity.token, "error": repr(error)},
            )
            self._interrupt = self._interrupt_write = None
            self._release_halts()
            self._loop.call_later(_WRITE_RETRY_SECONDS, self.interrupt, reason)
        elif written.result():
            self._settle()
        else:
            self.leave()

    def _settle(self) -> None:
        """Interrupt the handler once every branch has come to its next call.

        A branch that were cut off before its first call would have no number, on one run but not
        on the next, and those that the cleanup begins would get other keys.
        """
        if not self._settling:
            self._settling = True
            self._settle_further(0, -1)

    def _settle_further(self, quiet_turns: int, calls: int) -> None:
        if self.closed or self.interrupted or self._interrupt is None:
            self._settling = False
        elif quiet_turns < _QUIET_TURNS:
            quiet_turns = quiet_turns + 1 if calls == self._calls else 0
            self._loop.call_soon(self._settle_further, quiet_turns, self._calls)
        else:
            self._settling = False
            if self._halts or not self._interrupt.pending.isdisjoint(self._pending):
                self._cancel_handler()
            else:
                # On its way between calls: the next one that the interrupt concerns brings it
                # about, here as on every later run.
                self._interrupt_where_it_waits()

    def _interrupt_where_it_waits(self, calls: int = -1) -> None:
        """Interrupt a handler that makes no more calls, for it waits for something of its own."""
        if self.closed or self.interrupted:
            return
        if calls == self._calls:
            self._cancel_handler()
            return
        self._loop.call_later(_IDLE_SECONDS, self._interrupt_where_it_waits, self._calls)

    def _cancel_handler(self) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        self._on_interrupted()
        # Always through the handler's main task, so that a gather sees the same on every run.
        self._task.cancel()
        self._release_halts()

    def _release_halts(self) -> None:
        for halt in self._halts:
            _wake(halt)
        self._halts.clear()


def interrupt_entry(journal: Journal, reason: Reason, pending: set[str]) -> JournalEntry:
    """Return the journal entry of a handler's interruption, here and now."""
    return JournalEntry(
        key=INTERRUPT_KEY,
        ordinal=journal.next_ordinal(),
        kind=Kind.INTERRUPT,
        args_hash=None,
        output=json.dumps({"reason": reason, "pending": sorted(pending)}).encode(),
        error=None,
        ref=None,
        attempt=1,
        wake_at=None,
        created_at=now_ms(),
    )


def _wake(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)


def _returning(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except StopIteration as error:
        # A future cannot hold one, and its waiter would wait for ever.
        raise RuntimeError(f"{function!r} raised StopIteration") from error


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
