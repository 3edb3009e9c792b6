"""Measures the engine beside the `dbos` library: `python -m benchmarks.durable_steps`.

The operation is three trivial async steps, each recorded before the next begins; 32 are under way
at a time. Both run in a process of their own on a new database of the same kind, with every commit
on the disk: dbos awaits its workflow, the gateway's whole app is called as an ASGI server calls it
(`Prefer: wait`, no sockets). A third figure is of `nexus-gateway serve` over HTTP, with the load
from another process. All take turns, the other way round in every second round.
"""

import argparse
import importlib.metadata
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.databases import KINDS, Database, Databases, databases
from benchmarks.load import Load, Loop, percentile_ms, run_load
from benchmarks.machine import QUIET_CORES, Watch, wait_until_quiet
from benchmarks.parts import Measured, Part, described_versions, progress, scratch, table
from benchmarks.servers import ServerNotStarted, child_figures, gateway

AT_ONCE = 32
AT_LEAST = {"sqlite": 20.0, "postgresql": 8.0}

_DBOS, _IN_PROCESS, _OVER_HTTP = "dbos", "gateway, in process", "gateway, over HTTP"
_SYSTEMS = (_DBOS, _IN_PROCESS, _OVER_HTTP)
_MODULES = {_DBOS: "benchmarks.steps_dbos", _IN_PROCESS: "benchmarks.steps_gateway"}
_CHILD_SECONDS = 60.0
_SHOWN = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one system did in one round; the processor time is of the system's own process."""

    operations: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    other_cores: float


@dataclass(frozen=True)
class Round:
    """All systems on databases of one kind, one right after the other."""

    kind: str
    speeds: dict[str, Speed]

    def ratio(self, system: str) -> float:
        """Return how many times as fast as dbos a system is."""
        return self.speeds[system].per_second / self.speeds[_DBOS].per_second


def measure(options: argparse.Namespace) -> Measured:
    """Measure all rounds on all databases."""
    count, seconds, warm_up = options.step_rounds, options.step_seconds, 1.0
    if options.quick:
        count, seconds, warm_up = 2, 1.0, 0.5
    rounds: list[Round] = []
    versions: list[str] = [f"dbos {importlib.metadata.version('dbos')}"]
    for kind in options.step_databases:
        with scratch() as folder, databases(kind, folder) as made:
            versions += [made.version] if made.version else []
            for number in range(count):
                progress(f"  {_SHOWN[kind]}, round {number + 1} of {count}")
                wait_until_quiet(0.0 if options.quick else 5.0)
                run = partial(_speed, made, folder, seconds=seconds, warm_up=warm_up)
                order = _SYSTEMS if number % 2 == 0 else _SYSTEMS[::-1]
                rounds.append(Round(kind, {system: run(system) for system in order}))
    return Measured(
        text=render(rounds, versions, seconds),
        missed=missed(rounds),
        details={"rounds": [asdict(one) for one in rounds]},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument(
        "--step-rounds", type=int, default=4, help="rounds beside dbos, on each database (4)"
    )
    parser.add_argument(
        "--step-seconds", type=float, default=3.0, help="length of each measurement there (3)"
    )
    parser.add_argument(
        "--step-databases",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        help="what is measured beside dbos (both)",
    )


PART = Part("durable_steps", measure, add_options)


def missed(rounds: Sequence[Round]) -> list[str]:
    """Return what is not as required, in words."""
    found = []
    for kind, of_kind in _by_kind(rounds).items():
        ratio = _median_ratio(of_kind, _IN_PROCESS)
        if ratio < AT_LEAST[kind]:
            found.append(
                f"three steps on {_SHOWN[kind]}: {ratio:.1f} times as fast as dbos, "
                f"required is at least {AT_LEAST[kind]:g}"
            )
    return found


def render(rounds: Sequence[Round], versions: Sequence[str], seconds: float) -> str:
    """Return the rounds as Markdown."""
    header = (
        *("database", "system", "operations/s", "p50 / p99 ms", "CPU ms/op"),
        *("times dbos", "required", ""),
    )
    rows = [
        _row(kind, of_kind, system)
        for kind, of_kind in _by_kind(rounds).items()
        for system in _SYSTEMS
    ]
    counts = {len(of_kind) for of_kind in _by_kind(rounds).values()}
    others = sorted(speed.other_cores for one in rounds for speed in one.speeds.values())
    conditions = (
        f"{' or '.join(map(str, sorted(counts)))} rounds of {seconds:g} s for each system, "
        f"{AT_ONCE} operations at a time; medians. What counts as times dbos is the median of the "
        "rounds' own ratios, with the lowest and the highest in brackets."
    )
    noise = (
        f"Beside the benchmark, others used {statistics.median(others):.2f} cores in the median "
        f"and {others[-1]:.2f} at most; in {sum(cores > QUIET_CORES for cores in others)} of "
        f"{len(others)} measurements it was more than {QUIET_CORES:g}."
    )
    return "\n\n".join([described_versions(*versions), conditions, table(header, rows), noise])


def _row(kind: str, rounds: Sequence[Round], system: str) -> tuple[str, ...]:
    def median(name: str) -> float:
        values: list[float] = [getattr(one.speeds[system], name) for one in rounds]
        return statistics.median(values)

    times = required = verdict = "-"
    if system != _DBOS:
        ratios = [one.ratio(system) for one in rounds]
        times = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})"
    if system == _IN_PROCESS:
        required = f"at least {AT_LEAST[kind]:g}"
        verdict = "met" if _median_ratio(rounds, system) >= AT_LEAST[kind] else "MISSED"
    return (
        *(_SHOWN[kind], system, f"{median('per_second'):,.0f}"),
        *(f"{median('p50_ms'):.1f} / {median('p99_ms'):.1f}", f"{median('cpu_ms'):.2f}"),
        *(times, required, verdict),
    )


def _by_kind(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {}
    for one in rounds:
        found.setdefault(one.kind, []).append(one)
    return found


def _median_ratio(rounds: Sequence[Round], system: str) -> float:
    return statistics.median(one.ratio(system) for one in rounds)


def _speed(made: Databases, folder: Path, system: str, *, seconds: float, warm_up: float) -> Speed:
    database = made.new(migrated=system != _DBOS and made.kind != "sqlite")
    if system == _OVER_HTTP:
        return _over_http(database, folder, seconds, warm_up)
    watch = Watch()
    figures = _in_a_child(system, database, seconds, warm_up)
    return Speed(**figures, other_cores=watch.stop().other_cores)


def _in_a_child(system: str, database: Database, seconds: float, warm_up: float) -> dict[str, Any]:
    url = database.sqlalchemy_url if system == _DBOS else database.url
    return child_figures(
        _MODULES[system],
        *("--database", url, "--at-once", str(AT_ONCE)),
        *("--seconds", str(seconds), "--warm-up-seconds", str(warm_up)),
        timeout_seconds=_CHILD_SECONDS + seconds,
    )


def _over_http(database: Database, folder: Path, seconds: float, warm_up: float) -> Speed:
    with gateway(folder, database.url) as server:
        url = f"{server.base_url}/services/bench/steps"
        run_load(Load(url=url, loop=Loop.WAIT, clients=AT_ONCE, seconds=warm_up))
        watch = Watch(server.pid)
        outcome = run_load(Load(url=url, loop=Loop.WAIT, clients=AT_ONCE, seconds=seconds))
        usage = watch.stop()
    if outcome.failed or not outcome.completed:
        raise ServerNotStarted(f"the gateway's answers were {outcome.errors}")
    return Speed(
        operations=outcome.completed,
        per_second=outcome.completed_per_second,
        p50_ms=percentile_ms(outcome.latencies, 50),
        p99_ms=percentile_ms(outcome.latencies, 99),
        cpu_ms=1000 * usage.server_cpu_seconds / outcome.completed,
        other_cores=usage.other_cores,
    )


if __name__ == "__main__":
    sys.exit(PART.main())
