"""How fast the whole delivery service is, beside the same client posting bare."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.completions import astray
from benchmarks.databases import Databases
from benchmarks.machine import Watch, wait_until_quiet
from benchmarks.outbox_stock import Backlog, add_due, count_delivered
from benchmarks.parts import progress, table
from benchmarks.receiver import arrivals, receiver
from benchmarks.servers import child_figures

AT_ONCE = 64
AT_LEAST = 0.4

BARE, SENDER = "aiohttp, bare", "sender with its guard"
SERVICES = {"sqlite": "service, SQLite", "postgresql": "service, PostgreSQL"}
SYSTEMS = (BARE, SENDER, *SERVICES.values())

_CHILD_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one system did in one round; processor time, commits and writes are by delivery."""

    per_second: float
    cpu_ms: float
    commits: float
    writes: float
    lost: int
    doubled: int
    other_cores: float


@dataclass(frozen=True)
class Round:
    """All systems, one right after the other."""

    speeds: dict[str, Speed]

    def ratio(self, system: str) -> float:
        """Return a system's speed as a share of the bare client's."""
        return self.speeds[system].per_second / self.speeds[BARE].per_second


def measure(
    folder: Path, made: Sequence[Databases], *, deliveries: int, rounds: int, quiet_seconds: float
) -> list[Round]:
    """Measure all rounds, the other way round in every second one."""
    kinds = {SERVICES[one.kind]: one for one in made}
    systems = [system for system in SYSTEMS if system in {BARE, SENDER, *kinds}]
    found = []
    for number in range(rounds):
        progress(f"  speed, round {number + 1} of {rounds}")
        wait_until_quiet(quiet_seconds)
        order = systems if number % 2 == 0 else systems[::-1]
        found.append(
            Round(
                {system: _speed(folder, kinds.get(system), system, deliveries) for system in order}
            )
        )
    return found


def missed(rounds: Sequence[Round]) -> list[str]:
    """Return what is not as required, in words."""
    lines = []
    system = SERVICES["sqlite"]
    if system in rounds[0].speeds and (ratio := _ratio(rounds, system)) < AT_LEAST:
        lines.append(f"{system}: {ratio:.2f} of {BARE}, required is at least {AT_LEAST:g}")
    for one in rounds:
        for name, speed in one.speeds.items():
            if speed.lost or speed.doubled:
                lines.append(f"{name}: {speed.lost} lost, {speed.doubled} doubled")
    return lines


def render(rounds: Sequence[Round], deliveries: int) -> str:
    """Return the rounds as Markdown."""
    header = (
        *("system", "deliveries/s", "CPU ms each", "commits each", "writes each"),
        *("of bare", "required", ""),
    )
    conditions = (
        f"Throughput: {len(rounds)} rounds of {deliveries:,} completions for each system, "
        f"{AT_ONCE} at a time; medians. The share of the bare client's speed is the median of the "
        "rounds' own, with the lowest and the highest in brackets."
    )
    rows = [_row(rounds, system) for system in SYSTEMS if system in rounds[0].speeds]
    return "\n\n".join([conditions, table(header, rows)])


def _row(rounds: Sequence[Round], system: str) -> tuple[str, ...]:
    def median(name: str) -> float:
        values: list[float] = [getattr(one.speeds[system], name) for one in rounds]
        return statistics.median(values)

    share = required = verdict = commits = writes = "-"
    if system != BARE:
        ratios = [one.ratio(system) for one in rounds]
        share = f"{_ratio(rounds, system):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
    if system in SERVICES.values():
        commits, writes = f"{median('commits'):.3f}", f"{median('writes'):.2f}"
    if system == SERVICES["sqlite"]:
        required = f"at least {AT_LEAST:g}"
        verdict = "met" if _ratio(rounds, system) >= AT_LEAST else "MISSED"
    return (
        *(system, f"{median('per_second'):,.0f}", f"{median('cpu_ms'):.2f}", commits, writes),
        *(share, required, verdict),
    )


def _ratio(rounds: Sequence[Round], system: str) -> float:
    return statistics.median(one.ratio(system) for one in rounds)


def _speed(folder: Path, made: Databases | None, system: str, deliveries: int) -> Speed:
    # The first tenth is for opening connections, and is not counted.
    warm_up = deliveries // 10
    total = warm_up + deliveries
    database = None if made is None else made.new(migrated=True)
    with receiver(folder) as server:
        url = f"{server.base_url}/done"
        if database is None:
            arguments = ["bare" if system == BARE else "sender", "--url", url]
        else:
            add_due(database, [Backlog(server.base_url, url, range(1, total + 1))])
            arguments = ["outbox", "--database", database.url]
        watch = Watch()
        figures = child_figures(
            "benchmarks.delivering",
            *arguments,
            *("--deliveries", str(total), "--warm-up", str(warm_up), "--at-once", str(AT_ONCE)),
            timeout_seconds=_CHILD_SECONDS,
        )
        usage = watch.stop()
        lost, doubled = astray(arrivals(server), range(1, total + 1))
    if database is not None:
        lost = max(lost, total - count_delivered(database))
    names = ("per_second", "cpu_ms", "commits", "writes")
    kept: dict[str, Any] = {name: figures[name] for name in names}
    return Speed(**kept, lost=lost, doubled=doubled, other_cores=usage.other_cores)
