"""Measures what sleeping operations cost: `python -m benchmarks.sleepers`.

The database holds 0, 1,000, 10,000, 100,000 and a million suspended operations, each with a
recorded step and a timer that ends in a month. At each size a gateway is started on it, beside
another on an empty store; starts go to the two in turn, one at a time. What counts is the resident
memory of the gateway with a million, and its start latency against the empty one's.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import stock
from benchmarks.databases import KINDS, Database, databases
from benchmarks.load import percentile_ms
from benchmarks.machine import Watch, wait_until_quiet
from benchmarks.parts import Measured, Part, described_versions, progress, scratch, table
from benchmarks.picture import Chart, Curve, draw
from benchmarks.probes import probe_in_turn
from benchmarks.servers import gateway

SIZES = (0, 1_000, 10_000, 100_000, 1_000_000)
MEMORY_AT_MOST_MB = 300.0
LATENCY_AT_MOST = 1.5

_PICTURE = "sleepers.svg"
_MONTH_MS = 30 * 24 * 3600 * 1000
_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """How long starts took at one of the two gateways, in milliseconds."""

    p50: float
    p99: float

    def over(self, other: "Latencies") -> tuple[float, float]:
        """Return the ratios to another's."""
        return self.p50 / other.p50, self.p99 / other.p99

    def __str__(self) -> str:
        return f"{self.p50:.2f} / {self.p99:.2f}"


@dataclass(frozen=True, kw_only=True)
class Level:
    """A number of sleepers, and what they cost."""

    sleepers: int
    resident_mb: float
    stored_mb: float
    latencies: Latencies
    empty_latencies: Latencies
    starts: int
    other_cores: float


def measure(options: argparse.Namespace) -> Measured:
    """Fill a database level by level, and measure at each."""
    sizes = [size for size in SIZES if size <= (10_000 if options.quick else options.most_sleepers)]
    seconds = 1.0 if options.quick else 10.0
    levels: list[Level] = []
    with scratch() as folder, databases(options.sleepers_database, folder) as made:
        database = made.new(migrated=made.kind != "sqlite")
        _, template = stock.make_templates(database, folder)
        for before, size in pairwise((0, *sizes)):
            progress(f"  {size:,} sleepers")
            stock.add_suspended(database, template, range(before, size), due_in_ms=_MONTH_MS)
            wait_until_quiet(0.0 if options.quick else 5.0)
            empty = made.new(migrated=made.kind != "sqlite")
            levels.append(_level(folder, (database, empty), size, seconds))
        versions = [made.version] if made.version else []
    return Measured(
        text=render(levels, versions),
        missed=missed(levels[-1]),
        details={"levels": [asdict(level) for level in levels]},
        pictures={_PICTURE: picture(levels)},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument(
        "--most-sleepers", type=int, default=SIZES[-1], help="the largest number (1,000,000)"
    )
    parser.add_argument(
        "--sleepers-database", choices=KINDS, default=KINDS[0], help="where they are (sqlite)"
    )


PART = Part("sleepers", measure, add_options)


def missed(level: Level) -> list[str]:
    """Return what is not as required of the largest number of sleepers, in words."""
    lines = []
    if level.resident_mb >= MEMORY_AT_MOST_MB:
        lines.append(
            f"{level.resident_mb:,.0f} MB are resident with {level.sleepers:,} sleepers, required "
            f"is less than {MEMORY_AT_MOST_MB:g} MB"
        )
    for name, ratio in zip(("p50", "p99"), _ratios(level), strict=True):
        if ratio > LATENCY_AT_MOST:
            lines.append(
                f"start {name} is {ratio:.2f} of the empty store's with {level.sleepers:,} "
                f"sleepers, required is at most {LATENCY_AT_MOST:g}"
            )
    return lines


def render(levels: Sequence[Level], versions: Sequence[str]) -> str:
    """Return the levels as Markdown, and the picture of them."""
    header = (
        *("sleepers", "resident MB", "database MB", "start p50 / p99 ms"),
        *("empty store p50 / p99 ms", "p50 ratio", "p99 ratio"),
    )
    rows = [
        (
            *(f"{level.sleepers:,}", f"{level.resident_mb:,.0f}", f"{level.stored_mb:,.0f}"),
            *(str(level.latencies), str(level.empty_latencies)),
            *(f"{ratio:.2f}" for ratio in _ratios(level)),
        )
        for level in levels
    ]
    last = levels[-1]
    others = [level.other_cores for level in levels]
    conditions = (
        f"Required with {last.sleepers:,} sleepers: less than {MEMORY_AT_MOST_MB:g} MB, and ratios "
        f"of at most {LATENCY_AT_MOST:g}: {'MISSED' if missed(last) else 'met'}. Both gateways run "
        "at the same time and are asked in turn; "
        f"{min(level.starts for level in levels):,} starts or more each at every level."
    )
    noise = (
        f"Beside the benchmark, others used {median(others):.2f} cores in the median and "
        f"{max(others):.2f} at most."
    )
    curves = f"![Memory and start latency by the number of sleepers](pictures/{_PICTURE})"
    return "\n\n".join(
        [described_versions(*versions), table(header, rows), conditions, curves, noise]
    )


def picture(levels: Sequence[Level]) -> str:
    """Return the levels as two charts."""
    labels = [_short(level.sleepers) for level in levels]
    memory = Chart(
        "Resident memory of the gateway, MB",
        labels,
        "suspended operations",
        [Curve("resident", [level.resident_mb for level in levels], "a")],
        MEMORY_AT_MOST_MB,
        f"required: under {MEMORY_AT_MOST_MB:g} MB",
    )
    latency = Chart(
        "Latency of a start, ms",
        labels,
        "suspended operations",
        [
            Curve("p50", [level.latencies.p50 for level in levels], "a"),
            Curve("empty store", [level.empty_latencies.p50 for level in levels], "a", dotted=True),
            Curve("p99", [level.latencies.p99 for level in levels], "b"),
            Curve("empty store", [level.empty_latencies.p99 for level in levels], "b", dotted=True),
        ],
    )
    return draw([memory, latency], "Memory and start latency by the number of sleepers")


def _level(folder: Path, pair: tuple[Database, Database], sleepers: int, seconds: float) -> Level:
    """Measure a gateway on a database with sleepers beside one on an empty database."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(gateway(folder, database.url, name=f"{name}-{sleepers}"))
            for name, database in zip(("sleepers", "empty"), pair, strict=True)
        ]
        urls = [server.base_url for server in servers]
        asyncio.run(probe_in_turn(urls, min(1.0, seconds), _PAUSE_SECONDS))
        watch = Watch()
        ours, empty = asyncio.run(probe_in_turn(urls, seconds, _PAUSE_SECONDS))
        usage = watch.stop()
        resident = servers[0].resident_bytes()
    return Level(
        sleepers=sleepers,
        resident_mb=resident / 1e6,
        stored_mb=stock.stored_bytes(pair[0]) / 1e6,
        latencies=_latencies(ours),
        empty_latencies=_latencies(empty),
        starts=len(ours),
        other_cores=usage.other_cores,
    )


def _latencies(sorted_seconds: list[float]) -> Latencies:
    return Latencies(p50=percentile_ms(sorted_seconds, 50), p99=percentile_ms(sorted_seconds, 99))


def _ratios(level: Level) -> tuple[float, float]:
    return level.latencies.over(level.empty_latencies)


def _short(number: int) -> str:
    if number >= 1_000_000:
        return f"{number / 1_000_000:g}M"
    return f"{number / 1000:g}k" if number >= 1000 else str(number)


if __name__ == "__main__":
    sys.exit(PART.main())
