"""The time, as everything in the engine asks for it: one place to replace it in tests."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """Something that will happen later."""

    def cancel(self) -> None:
        """Have it not happen."""


class Clock:
    """The clock of this machine and the timers of the running event loop."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970, UTC."""
        return now_ms()

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Call a function after so many seconds; at once where they are not positive."""
        return asyncio.get_running_loop().call_later(max(0.0, seconds), callback, *args)


def now_ms() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
