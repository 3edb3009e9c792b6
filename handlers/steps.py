"""Running the function of a step until its result, or its last error, is recorded."""

import asyncio
import contextvars
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from nexusrpc import HandlerError, OperationError, OperationErrorState

from handlers.errors import StepArgumentsInvalid, StepError
from handlers.journal import Kind, part_of
from handlers.presence import DurableWait, Presence
from handlers.recorder import Recorder
from handlers.retry_policy import RetryPolicy
from handlers.store.journals import JournalEntry
from handlers.tracing import Tracing
from handlers.values import encode, is_miscall
from nexus_spec import failure_from_json, failure_of_error, failure_to_json
from nexus_spec.limits import PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_SHOWN_FROM_SECONDS = 1.0
_SHOWN_ERROR_CHARACTERS = 500


class Ownership(Protocol):
    """Whether this process may still begin something: its lease."""

    def holds(self) -> bool:
        """Whether it may, right now."""

    async def held(self) -> None:
        """Wait until it may."""


class Unshared:
    """The lease of a process that shares its database with no other."""

    def holds(self) -> bool:
        """Return True."""
        return True

    async def held(self) -> None:
        """Return at once."""


class Retries(Protocol):
    """Where it is shown which steps keep failing."""

    def set_retrying(self, step: str, shown: "dict[str, Any] | None") -> None:
        """Show the failed attempt of a step, or that it is done."""


@dataclass(eq=False, slots=True)
class Call:
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


@dataclass(eq=False, slots=True, kw_only=True)
class StepSettings:
    """What the steps of all operations of a process have in common.

    Attributes:
        threads: Where plain functions run.
        tracing: Spans, or nothing.
        lease: Asked before each attempt.
        suspend_after_seconds: A longer wait for the next attempt may go on out of memory.
        on_step: Told how many seconds each step took.
    """

    threads: Executor
    tracing: Tracing
    lease: Ownership
    suspend_after_seconds: float
    on_step: Callable[[float], None]


class Steps:
    """Runs the steps of one handler."""

    __slots__ = (
        "_presence",
        "_recorder",
        "_retries",
        "_settings",
        "on_idle",
    )

    def __init__(
        self, presence: Presence, recorder: Recorder, settings: StepSettings, retries: Retries
    ) -> None:
        self._presence = presence
        self._recorder = recorder
        self._settings = settings
        self._retries = retries
        self.on_idle: Callable[[], None] = lambda: None

    async def run(self, key: str, call: Call) -> JournalEntry:
        """Run a step and record its outcome."""
        began = time.perf_counter()
        presence = self._presence
        number = 1
        shown = False
        entry: JournalEntry | None = None
        journal = self._recorder.journal
        if journal.retries and (retry := journal.last_retry(key, call.args_hash)) is not None:
            # An earlier run left memory in the wait between two attempts.
            assert retry.wake_at is not None
            shown = True
            number = retry.attempt + 1
            await self._wait_durably(retry.wake_at)
        while True:
            if presence.hindered:
                await presence.may_begin()
            if not self._settings.lease.holds():
                await self._settings.lease.held()
                await presence.may_begin()
            presence.steps += 1
            try:
                attempt = await self._try(key, call, number)
                if self._is_last(attempt, call, number):
                    # Part of the step: what is running when the process drains is also recorded.
                    entry = await self._record(key, call, attempt, number)
            finally:
                presence.steps -= 1
                if presence.durable and presence.steps == 0:
                    self.on_idle()
            if entry is not None:
                if attempt.failure is not None:
                    self._log(logging.WARNING, "step failed", key, number, attempt.failure)
                break
            assert attempt.failure is not None
            self._log(logging.INFO, "step failed and is tried again", key, number, attempt.failure)
            await presence.may_begin()
            shown |= await self._wait_for_next(key, call, number, attempt.failure)
            number += 1
        if shown:
            self._retries.set_retrying(key, None)
        self._settings.on_step(time.perf_counter() - began)
        if presence.hindered:
            await presence.may_begin()
        if attempt.cancelled:
            raise asyncio.CancelledError
        return entry

    async def _try(self, key: str, call: Call, number: int) -> _Attempt:
        task = asyncio.current_task(self._presence.loop)
        assert task is not None
        cancels = task.cancelling()
        output: bytes | None = None
        failure: Exception | None = None
        with self._settings.tracing.step(key, number):
            try:
                if call.is_async:
                    value = await self._call(call)
                else:
                    value = await self._call_on_thread(call)
                output = _checked(encode(value, call.result_type))
            except asyncio.CancelledError:
                if self._presence.closed or task.cancelling() > cancels:
                    raise
                # Nobody cancelled this task: something that the function waited for was.
                failure = RuntimeError("the step's function raised CancelledError")
            except Exception as error:  # noqa: BLE001  # recorded, or logged and tried again
                failure = error
                if isinstance(error, TypeError) and is_miscall(call.function, call.args):
                    failure = StepArgumentsInvalid(str(error))  # as wrong the next time
        return _Attempt(output, failure, cancelled=task.cancelling() > cancels)

    def _is_last(self, attempt: _Attempt, call: Call, number: int) -> bool:
        failure = attempt.failure
        return (
            failure is None
            or attempt.cancelled
            # A result that cannot be recorded: the next one could not either.
            or isinstance(failure, StepArgumentsInvalid)
            or not call.retry.retries(failure, number)
        )

    async def _record(self, key: str, call: Call, attempt: _Attempt, number: int) -> JournalEntry:
        failure = attempt.failure
        entry = self._recorder.entry(
            key,
            Kind.STEP,
            args_hash=call.args_hash,
            output=attempt.output,
            error=None if failure is None else _error_to_json(failure, number),
            attempt=number,
        )
        await self._recorder.append(entry)
        return entry

    async def _call(self, call: Call) -> Any:
        if call.timeout is None:
            return await call.function(*call.args)
        async with asyncio.timeout(call.timeout.total_seconds()):
            return await call.function(*call.args)

    async def _call_on_thread(self, call: Call) -> Any:
        context = contextvars.copy_context()
        work = partial(context.run, _returning, call.function, *call.args)
        running = self._presence.loop.run_in_executor(self._settings.threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if self._presence.closed:
                raise
            # A thread cannot be stopped: what it does counts, so its result is kept.
            await asyncio.wait([running])
            return running.result()

    # ------------------------------------------------------------ between two attempts

    async def _wait_for_next(self, key: str, call: Call, number: int, failure: Exception) -> bool:
        """Wait as the policy says; return whether this is shown to operators."""
        seconds = call.retry.wait_seconds(number)
        next_at = self._presence.clock.now_ms() + round(seconds * 1000)
        shown = seconds >= _SHOWN_FROM_SECONDS
        if shown:
            self._retries.set_retrying(
                key,
                {
                    "step": key,
                    "attempt": number,
                    "error": _described(failure)[:_SHOWN_ERROR_CHARACTERS],
                    "next_at": next_at,
                },
            )
        if seconds <= self._settings.suspend_after_seconds:
            await self._presence.wait(seconds)
            return shown
        # Counted for good: the wait may go on out of memory.
        entry = self._recorder.entry(
            part_of(key, f"{Kind.RETRY}{number}"),
            Kind.RETRY,
            args_hash=call.args_hash,
            error=_error_to_json(failure, number),
            attempt=number,
            wake_at=next_at,
        )
        await self._recorder.append(entry)
        await self._wait_durably(next_at)
        return shown

    async def _wait_durably(self, wake_at: int) -> None:
        with self._presence.waiting(DurableWait(wake_at, by_message=False)):
            self.on_idle()
            await self._presence.wait((wake_at - self._presence.clock.now_ms()) / 1000)

    def _log(self, level: int, what: str, key: str, number: int, failure: Exception) -> None:
        logger.log(
            level,
            what,
            extra={
                "token": self._recorder.token,
                "step": key,
                "attempt": number,
                "error": repr(failure),
            },
        )


def recorded_error(entry: JournalEntry) -> Exception:
    """Return the error that a step's entry holds, as it is raised in the handler."""
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


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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
