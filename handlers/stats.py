"""What the engine counts: plain numbers, read by whoever exports metrics.

A metric call of a telemetry SDK costs some 3 % of a whole operation; an addition costs nothing.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

LATENCY_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)


class Histogram:
    """Counts durations by upper bound, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass
class EngineStats:
    """Numbers since the process began."""

    starts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By endpoint, service and operation: starts answered with a result, a token or a failure."""
    ended: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """By endpoint, service, operation and state: recorded operations that ended."""
    duration: Histogram = field(default_factory=Histogram)
    """From the start to the end of recorded operations."""
    step: Histogram = field(default_factory=Histogram)
    """Steps, retries included."""
    claimed: Counter[str] = field(default_factory=Counter)
    """By reason: operations taken from the database. `due`: woken, or handed back; `lapsed`: their
    process is gone; `own`: this process did not know of its own."""
    poisoned: int = 0
    """Operations paused because they lost their process again and again."""
    expired: int = 0
    """Operations deleted at the end of their retention."""
