"""The figures as Markdown, for the terminal and for RESULTS.md."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.comparisons import Comparison, Judged, Pair, Sample, judge
from benchmarks.load import percentile_ms
from benchmarks.machine import QUIET_CORES
from benchmarks.parts import table
from benchmarks.sampling import WAITING, Sampled


@dataclass
class Run:
    """Everything that one run measured."""

    rounds: int
    seconds: float
    versions: Mapping[str, str]
    pairs: dict[Comparison, list[Pair]] = field(default_factory=dict)
    sampled: Sampled = field(default_factory=lambda: Sampled({}, "not sampled"))

    @property
    def judged(self) -> list[Judged]:
        """Every figure."""
        return [one for comparison, pairs in self.pairs.items() for one in judge(comparison, pairs)]

    @property
    def samples(self) -> list[Sample]:
        """Every load on every server."""
        return [one for pairs in self.pairs.values() for pair in pairs for one in pair.samples]

    def missed(self) -> list[str]:
        """Return what is not as required, in words."""
        missed = [
            f"{one.comparison.name}: {one.figure.name} is {one.ratio:.2f} of the floor's, "
            f"required is {one.figure.required}"
            for one in self.judged
            if not one.is_met
        ]
        for comparison, pairs in self.pairs.items():
            for sample in (sample for pair in pairs for sample in pair.samples):
                outcome = sample.outcome
                if outcome.lost or outcome.duplicates or outcome.failed or not outcome.completed:
                    missed.append(
                        f"{comparison.name}: {outcome.completed} completed, {outcome.lost} lost, "
                        f"{outcome.duplicates} duplicates, {outcome.failed} failed {outcome.errors}"
                    )
        return missed

    def to_json(self) -> dict[str, Any]:
        """Return everything, round by round."""
        return {
            "rounds": self.rounds,
            "seconds": self.seconds,
            "versions": dict(self.versions),
            "figures": [
                {
                    "comparison": one.comparison.name,
                    "figure": one.figure.name,
                    "floor": one.floor,
                    "gateway": one.gateway,
                    "ratio": one.ratio,
                    "ratios": list(one.ratios),
                    "required": one.figure.required,
                    "is_met": one.is_met,
                }
                for one in self.judged
            ],
            "samples": {
                comparison.name: [[one.to_json() for one in pair.samples] for pair in pairs]
                for comparison, pairs in self.pairs.items()
            },
            "time_percent": self.sampled.shares,
        }


def render(run: Run) -> str:
    """Return a run as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    others = sorted(sample.usage.other_cores for sample in run.samples)
    noisy = sum(cores > QUIET_CORES for cores in others)
    rounds = (
        f"{run.rounds} rounds of {run.seconds:g} s each; medians. The ratio is the median of the "
        "rounds' own ratios, with the lowest and the highest in brackets."
    )
    time = (
        "Where the time of the gateway's only thread goes with 64 operations in flight (py-spy; "
        "the last line is no part of the 100 %):"
    )
    noise = (
        f"Beside the benchmark, others used {statistics.median(others):.2f} cores in the median "
        f"and {others[-1]:.2f} at most; in {noisy} of {len(others)} measurements it was more "
        f"than {QUIET_CORES:g}."
    )
    ratios = [_ratio_row(one) for one in run.judged]
    costs = [row for comparison, pairs in run.pairs.items() for row in _costs(comparison, pairs)]
    tables = [table(_RATIO_HEADER, ratios), table(_COST_HEADER, costs)]
    return "\n\n".join([f"{versions}.", rounds, *tables, time, _time_table(run.sampled), noise])


_RATIO_HEADER = ("load", "figure", "floor", "gateway", "ratio", "required", "")
_COST_HEADER = (
    "load",
    "server",
    "start p50 / p99 ms",
    "callback p50 / p99 ms",
    "CPU ms/op",
    "commits/op",
    "writes/op",
    "operations",
    "lost/dup/failed",
)


def _ratio_row(one: Judged) -> tuple[str, ...]:
    digits = one.figure.digits
    if one.ratio is None or one.floor is None:
        floor = ratio = verdict = "-"
    else:
        floor = f"{one.floor:,.{digits}f}"
        ratio = f"{one.ratio:.2f} ({min(one.ratios):.2f}..{max(one.ratios):.2f})"
        verdict = "-" if one.figure.required == "-" else "met" if one.is_met else "MISSED"
    gateway = f"{one.gateway:,.{digits}f}"
    return (
        *(one.comparison.name, one.figure.name, floor, gateway, ratio),
        *(one.figure.required, verdict),
    )


def _costs(comparison: Comparison, pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    rows = []
    floors = [pair.floor for pair in pairs if pair.floor is not None]
    if floors:
        rows.append(_cost_row(comparison, "floor", floors))
    rows.append(_cost_row(comparison, "gateway", [pair.gateway for pair in pairs]))
    return rows


def _cost_row(comparison: Comparison, server: str, samples: Sequence[Sample]) -> tuple[str, ...]:
    def latency(name: str) -> str:
        p50, p99 = (
            statistics.median(percentile_ms(getattr(one.outcome, name), percent) for one in samples)
            for percent in (50, 99)
        )
        return f"{p50:.2f} / {p99:.2f}"

    cpu = statistics.median(one.per_operation(one.usage.server_cpu_seconds) for one in samples)
    counted = comparison.durable and server == "gateway"
    commits = statistics.median(one.per_operation(one.commits) for one in samples)
    writes = statistics.median(one.per_operation(one.writes) for one in samples)
    outcomes = [one.outcome for one in samples]
    astray = (
        sum(getattr(one, name) for one in outcomes) for name in ("lost", "duplicates", "failed")
    )
    return (
        comparison.name,
        server,
        latency("accept_latencies"),
        latency("latencies") if comparison.durable else "-",
        f"{cpu * 1000:.2f}",
        f"{commits:.2f}" if counted else "-",
        f"{writes:.2f}" if counted else "-",
        f"{sum(one.completed for one in outcomes):,}",
        "/".join(map(str, astray)),
    )


def _time_table(sampled: Sampled) -> str:
    if sampled.problem is not None:
        return f"(not known: {sampled.problem})"
    waiting = sampled.shares.get(WAITING, 0.0)
    busy = 100 - waiting
    rows = [
        (name, f"{100 * share / busy:.0f} %")
        for name, share in sampled.shares.items()
        if name != WAITING
    ]
    return table(("concern", "share"), [*rows, (WAITING, f"{waiting:.0f} % of the time")])
