"""Measures the gateway beside its floors: `python -m benchmarks.run`.

Three servers run on free ports of 127.0.0.1: the gateway, the least that a durable gateway must do
(`floor_gateway`), and a bare Starlette echo (`echo_app`). The load goes to a floor and to the
gateway in turn, the other way round in every second round, with fresh processes and fresh SQLite
files for each round. Exit code 1 where a ratio is missed or an operation went astray, 2 where a
server does not start.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.comparisons import COMPARISONS, Comparison, Pair, Sample
from benchmarks.load import Load, Loop, run_load
from benchmarks.machine import Watch, versions, wait_until_quiet
from benchmarks.report import Run, render, write_results
from benchmarks.sampling import Sampled, Sampler
from benchmarks.servers import (
    REPOSITORY,
    Server,
    ServerNotStarted,
    database_counters,
    floor_gateway,
    gateway,
    starlette_echo,
)

_WARM_UP_SECONDS = 0.5
_SAMPLED_SECONDS = 8.0


def main() -> int:
    """Measure, print, and say whether everything is as required."""
    options = _options()
    run = Run(options.rounds, options.seconds, versions())
    # On the repository's own disk: /tmp may be memory, where an fsync costs nothing.
    parent = REPOSITORY / "data"
    parent.mkdir(exist_ok=True)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
            _round(run, Path(folder), options, floor_first=number % 2 == 0)
    if not options.no_sampling:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
            run.sampled = _sample(Path(folder), min(_SAMPLED_SECONDS, 4 * options.seconds))
    text = render(run)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(run.to_json(), indent=2) + "\n")
    if options.write_results:
        write_results(text)
    missed = run.missed()
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each load (4)")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of one second, noisy or not"
    )
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait before each pair for others to use less than 0.2 cores (5)",
    )
    parser.add_argument("--no-sampling", action="store_true", help="without py-spy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round here")
    parser.add_argument(
        "--write-results", action="store_true", help="rewrite the figures in RESULTS.md"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.quiet_seconds = 2, 1.0, 0.0
    if not 1 <= options.rounds <= 100 or not 0.1 <= options.seconds <= 60:
        parser.error("rounds are from 1 to 100, seconds from 0.1 to 60")
    return options


def _round(run: Run, folder: Path, options: argparse.Namespace, *, floor_first: bool) -> None:
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
            wait_until_quiet(options.quiet_seconds)
            samples = {
                server.name: _measure(server, comparison, options.seconds) for server in servers
            }
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
    try:
        sys.exit(main())
    except ServerNotStarted as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
