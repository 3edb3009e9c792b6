"""Whether a handler is in memory, and where it waits."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from handlers.clock import Clock
from handlers.errors import Diverged, LeftMemory


@dataclass(frozen=True, slots=True, eq=False)
class DurableWait:
    """A wait that may go on without the handler in memory."""

    wake_at: int | None  # milliseconds since 1970; None where only something from outside ends it
    by_message: bool  # something from outside may end it


class Presence:
    """One run's hold on memory: where its tasks wait, and how they are made to leave.

    Attributes:
        closed: Nothing that the handler does counts any more.
        left: It was taken out of memory, rather than having come to its end.
        diverged: Why, where its code does not match the journal.
        hindered: Nothing new may begin before `may_begin` says so.
        calls: How many calls the handler has made.
        steps: How many functions of the user are running.
        durable: The tasks that wait, and could as well do so out of memory.
        gathering: The tasks that wait in `ctx.gather`, and for which others.
    """

    __slots__ = (
        "_held",
        "_holding",
        "_leaving",
        "_waits",
        "calls",
        "clock",
        "closed",
        "diverged",
        "durable",
        "gathering",
        "hindered",
        "left",
        "loop",
        "steps",
        "task",
    )

    def __init__(self, task: "asyncio.Task[Any]", clock: Clock) -> None:
        self.task = task
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.left = False
        self.diverged: Diverged | None = None
        self.calls = 0
        self.steps = 0
        self.durable: dict[asyncio.Task[Any], DurableWait] = {}
        self.gathering: dict[asyncio.Task[Any], Sequence[asyncio.Task[Any]]] = {}
        self.hindered = False
        self._leaving = False
        self._held = False
        self._holding: list[asyncio.Future[None]] = []
        self._waits: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}

    # ------------------------------------------------------------ leaving

    def leave(self) -> None:
        """Take the handler out of memory: from here on nothing that it does is recorded."""
        if self.closed:
            return
        self.closed = self.left = self.hindered = True
        # Where a call of ours waits, in a branch or not, the cancellation comes out as LeftMemory.
        waiting = list(self._waits.items())
        for wait, _ in waiting:
            wait.cancel()
        main_waits = any(task is self.task for _, task in waiting)
        if not main_waits and asyncio.current_task() is not self.task:
            self.task.cancel()

    def leave_after_step(self) -> None:
        """Take the handler out of memory as soon as the running steps are recorded."""
        self._leaving = self.hindered = True
        if self.steps == 0:
            self.leave()

    def close(self, branches: "Iterable[asyncio.Task[Any]]") -> None:
        """The handler has returned: a task that it left behind may record nothing more."""
        self.closed = self.hindered = True
        for wait in list(self._waits):
            wait.cancel()
        for branch in list(branches):
            # It would run on beside the handler's next run, and do the same things twice.
            branch.cancel()

    def diverge(self, divergence: Diverged) -> Diverged:
        """Leave at once: neither a `finally` block nor another branch may do anything more."""
        if self.diverged is None:
            self.diverged = divergence
        self.leave()
        return self.diverged

    def check(self) -> None:
        """Check that what the handler does still counts.

        Raises:
            LeftMemory: It does not.
        """
        if self.closed:
            raise LeftMemory

    def raise_if_left(self) -> None:
        """Turn a cancellation into what it is, where the handler has left memory.

        Raises:
            LeftMemory: It has.
        """
        if self.left:
            raise LeftMemory

    # ------------------------------------------------------------ waiting

    @property
    def waiters(self) -> "set[asyncio.Task[Any]]":
        """The tasks of the handler that wait in calls of the context, for whatever it is."""
        return {task for task in self._waits.values() if task is not None}

    @property
    def waking(self) -> bool:
        """Whether a wait has ended whose task has not gone on yet."""
        return any(wait.done() for wait in self._waits)

    async def until(self, wait: asyncio.Future[None]) -> None:
        """Wait for a future of the caller's own, which leaving cancels.

        Raises:
            LeftMemory: The handler left meanwhile.
        """
        self._waits[wait] = asyncio.current_task()
        try:
            await wait
        finally:
            del self._waits[wait]
        self.check()

    async def wait(self, seconds: float) -> None:
        """Wait so many seconds, in memory."""
        if seconds <= 0:
            return
        wait: asyncio.Future[None] = self.loop.create_future()
        timer = self.clock.call_later(seconds, wake, wait)
        try:
            await self.until(wait)
        finally:
            timer.cancel()

    @contextmanager
    def waiting(self, durable: DurableWait) -> Iterator[None]:
        """Tell that the current task waits, and could do so out of memory."""
        task = asyncio.current_task()
        assert task is not None
        self.durable[task] = durable
        try:
            yield
        finally:
            del self.durable[task]

    # ------------------------------------------------------------ holding

    def hold(self) -> None:
        """Let nothing new begin until `release`."""
        self._held = self.hindered = True

    def release(self) -> None:
        """Let what waits to begin do so."""
        self._held = False
        self.hindered = self.closed or self._leaving
        for waiting in self._holding:
            wake(waiting)
        self._holding.clear()

    async def may_begin(self) -> None:
        """While the handler leaves, nothing new begins; what other branches run may end.

        Raises:
            LeftMemory: It has left.
        """
        self.check()
        while self._held or self._leaving:
            if self._leaving and self.steps == 0:
                self.leave()
                raise LeftMemory
            waiting: asyncio.Future[None] = self.loop.create_future()
            if not self._leaving:
                self._holding.append(waiting)
            await self.until(waiting)


def wake(waiting: "asyncio.Future[None]") -> None:
    """End a wait, if it has not ended."""
    if not waiting.done():
        waiting.set_result(None)
