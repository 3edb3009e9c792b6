"""Measures the gateway beside its floors: `python -m benchmarks.throughput`.

Three servers run on free ports of 127.0.0.1: the gateway, the least that a durable gateway must do
(`floor_gateway`), and a bare Starlette echo (`echo_app`). The load goes to a floor and to the
gateway in turn, the other way round in every second round, with fresh processes and fresh SQLite
files for each round. Exit code 1 where a ratio is missed or an operation went astray, 2 where a
server does not start.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.comparisons import COMPARISONS, Comparison, Pair, Sample
from benchmarks.load import Load, Loop, run_load
from benchmarks.machine import Watch, versions, wait_until_quiet
from benchmarks.parts import Measured, Part, progress, scratch
from benchmarks.report import Run, render
from benchmarks.sampling import Sampled, Sampler
from benchmarks.servers import Server, database_counters, floor_gateway, gateway, starlette_echo

_WARM_UP_SECONDS = 0.5
_SAMPLED_SECONDS = 8.0


def measure(options: argparse.Namespace) -> Measured:
    """Measure every comparison, and sample where the time goes."""
    rounds, seconds, quiet = options.rounds, options.seconds, options.quiet_seconds
    if options.quick:
        rounds, seconds, quiet = 2, 1.0, 0.0
    run = Run(rounds, seconds, versions())
    for number in range(rounds):
        progress(f"  round {number + 1} of {rounds}")
        with scratch() as folder:
            _round(run, folder, quiet, floor_first=number % 2 == 0)
    if not options.no_sampling:
        with scratch() as folder:
            run.sampled = _sample(folder, min(_SAMPLED_SECONDS, 4 * seconds))
    return Measured(text=render(run), missed=run.missed(), details=run.to_json())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the comparisons (4)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load (3)")
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait before each pair for others to use less than 0.2 cores (5)",
    )
    parser.add_argument("--no-sampling", action="store_true", help="without py-spy")


PART = Part("throughput", measure, add_options)


def _round(run: Run, folder: Path, quiet_seconds: float, *, floor_first: bool) -> None:
    with ExitStack() as stack:
        ours = stack.enter_context(gateway(folder))
        floors = {
            "floor": stack.enter_context(floor_gateway(folder)),
            "echo": stack.enter_context(starlette_echo(folder)),
        }
        for comparison in COMPARISONS:
            servers = [ours]
            if comparison.floor is not None:
                servers.insert(0 if floor_first else 1, floors[comparison.floor])
            for server in servers:
                _load(server, comparison, _WARM_UP_SECONDS)
            wait_until_quiet(quiet_seconds)
            samples = {server.name: _measure(server, comparison, run.seconds) for server in servers}
            pair = Pair(samples.pop(ours.name), next(iter(samples.values()), None))
            run.pairs.setdefault(comparison, []).append(pair)


def _measure(server: Server, comparison: Comparison, seconds: float) -> Sample:
    counted = server.name == "gateway"
    before = database_counters(server) if counted else (0.0, 0.0)
    watch = Watch(server.pid)
    outcome = run_load(_described(server, comparison, seconds))
    usage = watch.stop()
    after = database_counters(server) if counted else (0.0, 0.0)
    return Sample(outcome, usage, after[0] - before[0], after[1] - before[1])


def _load(server: Server, comparison: Comparison, seconds: float) -> None:
    run_load(_described(server, comparison, seconds))


def _described(server: Server, comparison: Comparison, seconds: float) -> Load:
    prefix = "/services/bench" if server.name == "gateway" else "/bench"
    return Load(
        url=f"{server.base_url}{prefix}/{comparison.operation}",
        loop=comparison.loop,
        clients=comparison.clients,
        seconds=seconds,
    )


def _sample(folder: Path, seconds: float) -> Sampled:
    busy = next(one for one in COMPARISONS if one.loop is Loop.END_TO_END and one.clients == 64)
    with gateway(folder) as server:
        _load(server, busy, _WARM_UP_SECONDS)
        sampler = Sampler(server.pid, seconds, folder)
        # Longer than the sampler needs to start: it must not see an idle server at its end.
        _load(server, busy, seconds + 2)
        return sampler.result()


if __name__ == "__main__":
    sys.exit(PART.main())
