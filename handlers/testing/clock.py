"""A clock that stands still until it is told to go on."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from handlers.clock import Clock, Timer
from handlers.testing.pulse import Pulse

DEFAULT_NOW = datetime(2030, 1, 1, tzinfo=UTC)


class _FakeTimer:
    __slots__ = ("args", "callback", "cancelled", "due_ms")

    def __init__(self, due_ms: int, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.due_ms = due_ms
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock(Clock):
    """The time of a `TestGateway`: it passes only when somebody waits for what is to come.

    Everything that the engine does at a time is on it: sleeps, deadlines, waits with a timeout,
    the pauses between the attempts of a step. What a step's own function does takes real time.

    Args:
        now: The time at first, UTC.
    """

    def __init__(self, now: datetime = DEFAULT_NOW) -> None:
        self._now_ms = round(now.timestamp() * 1000)
        self._timers: list[tuple[int, int, _FakeTimer]] = []
        self._numbers = itertools.count()
        self._advance: Callable[[int], Awaitable[None]] = self._advance_alone
        self.pulse = Pulse()

    def __repr__(self) -> str:
        return f"<FakeClock {self.now.isoformat(timespec='milliseconds')}>"

    @property
    def now(self) -> datetime:
        """The time, UTC."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    async def advance(self, duration: timedelta) -> None:
        """Let so much time pass, and everything happen that happens meanwhile, in its order.

        Raises:
            ValueError: The duration is negative.
        """
        if duration < timedelta(0):
            raise ValueError("time does not go back")
        await self._advance(self._now_ms + round(duration / timedelta(milliseconds=1)))

    # ------------------------------------------------------------ what the engine asks for

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970, UTC."""
        return self._now_ms

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Call a function when so much time has passed; at once where it is none."""
        self.pulse.beat()
        due_ms = self._now_ms + round(seconds * 1000)
        if due_ms <= self._now_ms:
            return asyncio.get_running_loop().call_soon(callback, *args)
        timer = _FakeTimer(due_ms, callback, args)
        heapq.heappush(self._timers, (due_ms, next(self._numbers), timer))
        return timer

    # ------------------------------------------------------------ what the gateway asks for

    def driven_by(self, advance: Callable[[int], Awaitable[None]]) -> None:
        """Have a function take the time to a moment, in milliseconds since 1970."""
        self._advance = advance

    def next_timer(self) -> int | None:
        """Return when the next timer is due, in milliseconds since 1970."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def jump(self, to_ms: int) -> None:
        """Be at a moment, and call what was due until then, in order."""
        self._now_ms = max(self._now_ms, to_ms)
        while (due_ms := self.next_timer()) is not None and due_ms <= self._now_ms:
            _, _, timer = heapq.heappop(self._timers)
            timer.callback(*timer.args)

    async def _advance_alone(self, to_ms: int) -> None:
        while (due_ms := self.next_timer()) is not None and due_ms <= to_ms:
            self.jump(due_ms)
            await asyncio.sleep(0)
        self.jump(to_ms)
