"""Measures the delivery of completions: `python -m benchmarks.deliveries`.

Throughput: the delivery service on its outbox beside the same HTTP client posting bare, in turn.
Isolation: what healthy destinations feel of a dead and a slow one among them. Drain: a large, very
uneven backlog, delivered by one process. All go to a receiver in a process of its own, and each
completion is counted there.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks import delivery_drain, delivery_isolation, delivery_speed
from benchmarks.databases import KINDS, databases
from benchmarks.machine import QUIET_CORES
from benchmarks.parts import Measured, Part, described_versions, scratch

MEASUREMENTS = ("throughput", "isolation", "drain")


def measure(options: argparse.Namespace) -> Measured:
    """Make the measurements that are chosen."""
    quick, chosen = options.quick, options.delivery_measurements
    rounds, quiet = (2, 0.0) if quick else (options.delivery_rounds, 5.0)
    texts: list[str] = []
    missed: list[str] = []
    details: dict[str, Any] = {}
    pictures: dict[str, str] = {}
    others: list[float] = []
    with scratch() as folder, ExitStack() as stack:
        made = [stack.enter_context(databases(kind, folder)) for kind in KINDS]
        sqlite = made[0]
        if "throughput" in chosen:
            count = 2_000 if quick else options.deliveries
            speeds = delivery_speed.measure(
                folder, made, deliveries=count, rounds=rounds, quiet_seconds=quiet
            )
            texts.append(delivery_speed.render(speeds, count))
            missed += delivery_speed.missed(speeds)
            details["throughput"] = [asdict(one) for one in speeds]
            others += [speed.other_cores for one in speeds for speed in one.speeds.values()]
        if "isolation" in chosen:
            seconds = 4.0 if quick else options.isolation_seconds
            phases = delivery_isolation.measure(
                folder, sqlite, seconds=seconds, rounds=rounds, quiet_seconds=quiet
            )
            texts.append(delivery_isolation.render(phases, seconds))
            missed += delivery_isolation.missed(phases)
            details["isolation"] = [asdict(one) for one in phases]
            others += [phase.other_cores for one in phases for phase in one.phases.values()]
        if "drain" in chosen:
            count, destinations = (5_000, 50) if quick else (options.drained, 1_000)
            drain = delivery_drain.measure(
                folder, sqlite, deliveries=count, destinations=destinations, quiet_seconds=quiet
            )
            texts.append(delivery_drain.render(drain))
            missed += delivery_drain.missed(drain)
            details["drain"] = asdict(drain)
            pictures[delivery_drain.PICTURE] = delivery_drain.picture(drain)
            others.append(drain.other_cores)
        versions = [one.version for one in made if one.version]
    return Measured(
        text="\n\n".join([described_versions(*versions), *texts, _noise(others)]),
        missed=missed,
        details=details,
        pictures=pictures,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument(
        "--delivery-measurements",
        nargs="+",
        choices=MEASUREMENTS,
        default=MEASUREMENTS,
        help="what is measured of deliveries (all)",
    )
    parser.add_argument(
        "--delivery-rounds", type=int, default=5, help="rounds of throughput and isolation (5)"
    )
    parser.add_argument(
        "--deliveries", type=int, default=20_000, help="completions for each system (20,000)"
    )
    parser.add_argument(
        "--isolation-seconds", type=float, default=10.0, help="length of each load there (10)"
    )
    parser.add_argument(
        "--drained", type=int, default=100_000, help="completions of the drain (100,000)"
    )


PART = Part("deliveries", measure, add_options)


def _noise(others: Sequence[float]) -> str:
    return (
        f"Beside the benchmark, others used {statistics.median(others):.2f} cores in the median "
        f"and {max(others):.2f} at most; in {sum(cores > QUIET_CORES for cores in others)} of "
        f"{len(others)} measurements it was more than {QUIET_CORES:g}."
    )


if __name__ == "__main__":
    sys.exit(PART.main())
