"""Running a nexusrpc handler within a request: timeout, disconnect, threads."""

import asyncio
import contextvars
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import OperationTaskCancellation

T = TypeVar("T")


class ClientDisconnected(Exception):
    """The caller hung up; there is nobody to answer."""


class TaskCancellation(OperationTaskCancellation):
    """Tells a handler, on the loop or on a thread, that nobody waits for it any more."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._event: threading.Event | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.Lock()

    def is_cancelled(self) -> bool:
        """Whether the caller is gone or out of time."""
        return self._reason is not None

    def cancellation_reason(self) -> str | None:
        """Why, or None."""
        return self._reason

    def wait_until_cancelled_sync(self, timeout: float | None = None) -> bool:
        """Block a thread until the request is cancelled, at most `timeout` seconds."""
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
                if self._reason is not None:
                    self._event.set()
        return self._event.wait(timeout)

    async def wait_until_cancelled(self) -> None:
        """Wait until the request is cancelled."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._reason is not None:
                return
            self._waiters.append((loop, waiter))
        await waiter

    def cancel(self, reason: str) -> None:
        """Tell everybody who waits."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            if self._event is not None:
                self._event.set()
        for loop, waiter in self._waiters:
            loop.call_soon_threadsafe(_wake, waiter)


class HandlerThreads:
    """A bounded pool for `def` handlers.

    A handler that overstays its request keeps its thread, so what is refused when all are taken
    is a new request, and not memory.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="nexus-handler")
        self._taken = 0
        self._lock = threading.Lock()

    def run(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function on a thread that sees the caller's context variables.

        Raises:
            HandlerError: UNAVAILABLE; every thread is taken.
        """
        if self._taken >= self._size:
            raise HandlerError(
                f"all {self._size} handler threads are busy", type=HandlerErrorType.UNAVAILABLE
            )
        with self._lock:
            self._taken += 1
        context = contextvars.copy_context()
        work = self._executor.submit(context.run, _returning, function, *args)
        work.add_done_callback(self._returned)
        return asyncio.wrap_future(work)

    def close(self) -> None:
        """Let the threads end; one that is still busy is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _returned(self, work: Future[Any]) -> None:
        # By the thread itself: the request may be given up long before.
        with self._lock:
            self._taken -= 1


async def run_within_request(
    coroutine: Coroutine[Any, Any, T],
    cancellation: TaskCancellation,
    timeout_seconds: float | None,
    disconnected: Callable[[], Awaitable[None]] | None,
) -> T:
    """Run a handler's coroutine; cancel it when time is up or the caller hangs up.

    Most handlers return without ever waiting, so the first step is taken directly, and only one
    that does wait pays for a timer and a watch on the connection.

    Raises:
        HandlerError: REQUEST_TIMEOUT; the handler took longer than `timeout_seconds`.
        ClientDisconnected: The caller hung up.
    """
    began = time.monotonic()
    try:
        first = coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    guard = _Guard(cancellation)
    timer = None
    watch = None
    if timeout_seconds is not None:
        left = timeout_seconds - (time.monotonic() - began)
        timer = guard.loop.call_later(max(0.0, left), guard.cancel, "request timeout")
    if disconnected is not None:
        watch = guard.loop.create_task(guard.watch(disconnected))
    try:
        value = await _resume(coroutine, first)
    except asyncio.CancelledError:
        if cancellation.cancellation_reason() is None:
            cancellation.cancel("the server is shutting down")
            raise
        if cancellation.cancellation_reason() == "request timeout":
            raise request_timed_out() from None
        raise ClientDisconnected from None
    finally:
        guard.done = True
        if guard.fired:
            guard.task.uncancel()  # spent here, whatever the handler made of it
        if timer is not None:
            timer.cancel()
        if watch is not None:
            watch.cancel()
    if guard.fired:
        # The handler held on to its answer although it was cancelled; it is too late for it.
        raise request_timed_out()
    return value


def request_timed_out() -> HandlerError:
    """Return the error for a handler that took longer than the caller's `Request-Timeout`."""
    return HandlerError(
        "the handler did not answer within Request-Timeout",
        type=HandlerErrorType.REQUEST_TIMEOUT,
    )


class _Guard:
    def __init__(self, cancellation: TaskCancellation) -> None:
        self.loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.done = False
        self.fired = False
        self._cancellation = cancellation

    def cancel(self, reason: str) -> None:
        if self.done or self.fired:
            return
        self.fired = True
        self._cancellation.cancel(reason)
        self.task.cancel()

    async def watch(self, disconnected: Callable[[], Awaitable[None]]) -> None:
        await disconnected()
        self.cancel("the caller disconnected")


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """Await a coroutine that has begun already and now waits for `waiting`."""
    while True:
        try:
            sent = yield waiting
        except BaseException as error:  # noqa: BLE001  # handed on to the coroutine
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, sent)
        try:
            waiting = step()
        except StopIteration as done:
            value: T = done.value
            return value


def _returning(function: Callable[..., T], *args: Any) -> T:
    try:
        return function(*args)
    except StopIteration as error:
        # A future cannot hold one, and its waiter would wait for ever.
        raise RuntimeError(f"{function!r} raised StopIteration") from error


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
