"""What is compared with what, and how the rounds of a comparison become one figure."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.load import Loop, Outcome, percentile_ms
from benchmarks.machine import Usage


@dataclass(frozen=True)
class Figure:
    """One number of an outcome, and what its ratio to the floor's must be."""

    name: str
    of: Callable[[Outcome], float]
    digits: int = 0
    at_least: float | None = None
    at_most: float | None = None

    @property
    def required(self) -> str:
        """The requirement, to read."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else "-"

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is None or ratio <= self.at_most


@dataclass(frozen=True, eq=False)
class Comparison:
    """One load, on the gateway and on its floor (None: there is none for this)."""

    name: str
    floor: str | None
    operation: str
    loop: Loop
    clients: int
    figures: Sequence[Figure]

    @property
    def durable(self) -> bool:
        """Whether operations are recorded and completed by callback."""
        return self.loop is not Loop.INLINE


@dataclass(frozen=True)
class Sample:
    """One load on one server."""

    outcome: Outcome
    usage: Usage
    commits: float = 0.0
    writes: float = 0.0

    def per_operation(self, amount: float) -> float:
        """Return an amount by accepted operation."""
        return amount / max(1, self.outcome.accepted)

    def to_json(self) -> dict[str, Any]:
        """Return the sample without its single latencies, but with their percentiles."""
        values = asdict(self.outcome) | asdict(self.usage)
        for name in ("accept_latencies", "latencies"):
            latencies = values.pop(name)
            values[name.replace("latencies", "ms")] = {
                f"p{percent}": round(percentile_ms(latencies, percent), 3) for percent in (50, 99)
            }
        return values | {"commits": self.commits, "writes": self.writes}


@dataclass(frozen=True)
class Pair:
    """The gateway and its floor under the same load, one right after the other."""

    gateway: Sample
    floor: Sample | None

    @property
    def samples(self) -> list[Sample]:
        """What there is."""
        return [self.gateway] if self.floor is None else [self.floor, self.gateway]


def _start_p50(outcome: Outcome) -> float:
    return percentile_ms(outcome.accept_latencies, 50)


def _p50(outcome: Outcome) -> float:
    return percentile_ms(outcome.latencies, 50)


def _completed(outcome: Outcome) -> float:
    return outcome.completed_per_second


COMPARISONS = (
    Comparison(
        "durable, 64 clients, each starts on acceptance",
        "floor",
        "run",
        Loop.START,
        64,
        [Figure("completed/s", _completed, at_least=0.35)],
    ),
    Comparison(
        "durable, 64 in flight, each awaits its callback",
        "floor",
        "run",
        Loop.END_TO_END,
        64,
        [Figure("completed/s", _completed, at_least=0.35)],
    ),
    Comparison(
        "durable, one at a time",
        "floor",
        "run",
        Loop.END_TO_END,
        1,
        [
            Figure("start to callback, p50 ms", _p50, digits=2, at_most=3.0),
            Figure("start to acceptance, p50 ms", _start_p50, digits=2),
        ],
    ),
    Comparison(
        "durable, three steps, 32 in flight",
        None,
        "steps",
        Loop.END_TO_END,
        32,
        [Figure("completed/s", _completed), Figure("start to callback, p50 ms", _p50, digits=2)],
    ),
    Comparison(
        "inline, one at a time", "echo", "echo", Loop.INLINE, 1, [Figure("p50 ms", _p50, digits=2)]
    ),
    Comparison(
        "inline, 64 at a time",
        "echo",
        "echo",
        Loop.INLINE,
        64,
        [Figure("answered/s", _completed, at_least=0.4)],
    ),
)


@dataclass(frozen=True)
class Judged:
    """A figure over all rounds: medians, and the ratios of the pairs (none without a floor)."""

    comparison: Comparison
    figure: Figure
    gateway: float
    floor: float | None
    ratios: Sequence[float]

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def is_met(self) -> bool:
        """Whether the ratio is as required."""
        return self.ratio is None or self.figure.is_met(self.ratio)


def judge(comparison: Comparison, pairs: Sequence[Pair]) -> list[Judged]:
    """Return what the rounds of a comparison say, figure by figure.

    The ratio is the median of the ratios of the pairs, and not the ratio of medians: what slows
    the machine for a while slows both of a pair.
    """
    judged = []
    for figure in comparison.figures:
        ours = [figure.of(pair.gateway.outcome) for pair in pairs]
        floors = [figure.of(pair.floor.outcome) for pair in pairs if pair.floor is not None]
        judged.append(
            Judged(
                comparison,
                figure,
                statistics.median(ours),
                statistics.median(floors) if floors else None,
                [_ratio(our, floor) for our, floor in zip(ours, floors, strict=bool(floors))],
            )
        )
    return judged


def _ratio(ours: float, floor: float) -> float:
    return ours / floor if floor else float("nan")
