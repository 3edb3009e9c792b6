"""How a large backlog to many destinations drains: how fast, and how fairly."""

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.completions import Arrival, astray
from benchmarks.databases import Databases
from benchmarks.machine import Watch, wait_until_quiet
from benchmarks.outbox_stock import Backlog, add_due, backlogs, count_delivered
from benchmarks.parts import progress, table
from benchmarks.picture import Chart, Curve, draw
from benchmarks.receiver import arrivals, receiver
from benchmarks.servers import child_figures

FIRST_WITHIN_SHARE = 0.15
SMALL = 100
PICTURE = "deliveries.svg"

_AT_ONCE = 64  # to one destination: the default
_OF_A_KIND = 10  # destinations whose curves are drawn as one
_POINTS = 20
_BEGINNING = 0.2  # of the time: what the second chart shows
_CHILD_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Drain:
    """What happened; times in seconds from the first receipt, one for each destination."""

    sizes: Sequence[int]
    seconds: float
    first_at: Sequence[float]
    last_at: Sequence[float]
    shares: dict[str, Sequence[float]]  # of what waited that has arrived, over the time, by kind
    cpu_ms: float
    commits: float
    peak_bytes: int
    lost: int
    doubled: int
    other_cores: float

    @property
    def per_second(self) -> float:
        """How many were delivered each second."""
        return sum(self.sizes) / self.seconds

    @property
    def all_begun(self) -> float:
        """When the last destination had its first, as a share of the time."""
        return max(self.first_at) / self.seconds

    @property
    def small_done(self) -> float:
        """When nine tenths of the small destinations had all of theirs, as a share of the time."""
        done = sorted(
            at for size, at in zip(self.sizes, self.last_at, strict=True) if size <= SMALL
        )
        return done[math.ceil(0.9 * len(done)) - 1] / self.seconds


def uneven_sizes(total: int, destinations: int) -> list[int]:
    """Divide completions among destinations, the n-th with about one n-th of the first's."""
    harmonic = sum(1 / rank for rank in range(1, destinations + 1))
    sizes = [max(1, int(total / harmonic / rank)) for rank in range(1, destinations + 1)]
    sizes[0] += total - sum(sizes)
    return sizes


def measure(
    folder: Path, made: Databases, *, deliveries: int, destinations: int, quiet_seconds: float
) -> Drain:
    """Fill an outbox, and let one process deliver everything."""
    progress(f"  drain, {deliveries:,} completions to {destinations:,} destinations")
    sizes = uneven_sizes(deliveries, destinations)
    database = made.new(migrated=True)
    with receiver(folder) as server:
        waiting = backlogs(sizes, int(server.base_url.rpartition(":")[2]))
        add_due(database, waiting)
        wait_until_quiet(quiet_seconds)
        watch = Watch()
        figures = child_figures(
            "benchmarks.delivering",
            *("outbox", "--database", database.url),
            *("--deliveries", str(deliveries), "--at-once", str(_AT_ONCE)),
            timeout_seconds=_CHILD_SECONDS,
        )
        usage = watch.stop()
        arrived = arrivals(server)
    lost, doubled = astray(arrived, range(1, deliveries + 1))
    began = arrived[0].at
    seconds = arrived[-1].at - began
    times = _by_destination(arrived, waiting, began)
    return Drain(
        sizes=sizes,
        seconds=seconds,
        first_at=[of_one[0] if of_one else seconds for of_one in times],
        last_at=[of_one[-1] if of_one else seconds for of_one in times],
        shares=_shares(times, seconds),
        cpu_ms=figures["cpu_ms"],
        commits=figures["commits"],
        peak_bytes=figures["peak_bytes"],
        lost=max(lost, deliveries - count_delivered(database)),
        doubled=doubled,
        other_cores=usage.other_cores,
    )


def missed(drain: Drain) -> list[str]:
    """Return what is not as required, in words."""
    lines = []
    if drain.all_begun > FIRST_WITHIN_SHARE:
        lines.append(
            f"a destination waited {drain.all_begun:.0%} of the drain for its first completion, "
            f"required is at most {FIRST_WITHIN_SHARE:.0%}"
        )
    if drain.lost or drain.doubled:
        lines.append(f"drain: {drain.lost} lost, {drain.doubled} doubled")
    return lines


def render(drain: Drain) -> str:
    """Return the drain as Markdown, and the picture of it."""
    small = [size for size in drain.sizes if size <= SMALL]
    begun = f"within {FIRST_WITHIN_SHARE:.0%}"
    rows = [
        (
            "all delivered",
            f"{drain.seconds:.1f} s ({drain.per_second:,.0f}/s)",
            *("each once", "MISSED" if drain.lost or drain.doubled else "met"),
        ),
        (
            "every destination has had its first, after",
            f"{drain.all_begun:.1%} of the time",
            *(begun, "met" if drain.all_begun <= FIRST_WITHIN_SHARE else "MISSED"),
        ),
        (
            f"nine tenths of the {len(small):,} with at most {SMALL} are done, after",
            f"{drain.small_done:.1%} of the time",
            *("-", "-"),
        ),
        ("CPU ms, commits for each", f"{drain.cpu_ms:.2f}, {drain.commits:.3f}", "-", "-"),
        ("most resident memory", f"{drain.peak_bytes / 1e6:,.0f} MB", "-", "-"),
    ]
    header = (
        f"{sum(drain.sizes):,} completions, {len(drain.sizes):,} destinations",
        *("figure", "required", ""),
    )
    conditions = (
        f"Drain: the largest destination has {max(drain.sizes):,} completions, the median one "
        f"{sorted(drain.sizes)[len(drain.sizes) // 2]:,}, the smallest {min(drain.sizes):,}; one "
        "process, SQLite."
    )
    curves = f"![Share delivered over time, and destinations begun](pictures/{PICTURE})"
    return "\n\n".join([conditions, table(header, rows), curves])


def picture(drain: Drain) -> str:
    """Return the drain as two charts."""
    colors = dict(zip(drain.shares, "abc", strict=False))
    delivered = Chart(
        "Delivered, %",
        [_label(number, 1.0) for number in range(_POINTS + 1)],
        "share of the drain's time, %",
        [Curve(name, values, colors[name]) for name, values in drain.shares.items()],
    )
    first_at = sorted(drain.first_at)
    moments = _moments(_BEGINNING * drain.seconds)
    begun = Chart(
        "Destinations that have had their first, %",
        [_label(number, _BEGINNING) for number in range(_POINTS + 1)],
        "share of the drain's time, %",
        [Curve("begun", [_percent(first_at, moment) for moment in moments], "a")],
    )
    return draw([delivered, begun], "Share delivered over time, and destinations begun")


def _by_destination(
    arrived: Sequence[Arrival], waiting: Sequence[Backlog], began: float
) -> list[list[float]]:
    """Return when completions arrived at each destination, sorted."""
    starts = [backlog.numbers.start for backlog in waiting]
    found: dict[int, list[float]] = defaultdict(list)
    for arrival in arrived:
        found[bisect.bisect_right(starts, arrival.number) - 1].append(arrival.at - began)
    return [sorted(found[place]) for place in range(len(waiting))]


def _shares(times: Sequence[Sequence[float]], seconds: float) -> dict[str, Sequence[float]]:
    """Return the percentage that has arrived at each moment, of three kinds of destinations."""
    middle = max(0, len(times) // 2 - _OF_A_KIND // 2)
    kinds = {
        f"{_OF_A_KIND} largest": times[:_OF_A_KIND],
        f"{_OF_A_KIND} median": times[middle : middle + _OF_A_KIND],
        f"{_OF_A_KIND} smallest": times[-_OF_A_KIND:],
    }
    merged = {name: sorted(at for one in of_kind for at in one) for name, of_kind in kinds.items()}
    moments = _moments(seconds)
    return {name: [_percent(at, moment) for moment in moments] for name, at in merged.items()}


def _moments(seconds: float) -> list[float]:
    return [seconds * number / _POINTS for number in range(_POINTS + 1)]


def _percent(times: Sequence[float], moment: float) -> float:
    return 100 * bisect.bisect_right(times, moment) / max(1, len(times))


def _label(number: int, share: float) -> str:
    """Name every fifth moment."""
    return f"{100 * share * number / _POINTS:g}" if number % 5 == 0 else ""
