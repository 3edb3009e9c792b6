"""A closed loop inside the measured process: so many at once, each followed by the next."""

import argparse
import asyncio
import gc
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from benchmarks.load import percentile_ms
from benchmarks.machine import own_cpu_seconds

Once = Callable[[int], Awaitable[None]]
Measure = Callable[[Once], Awaitable[None]]
Serve = Callable[[argparse.Namespace, Measure], Coroutine[Any, Any, None]]


def run_child(serve: Serve) -> None:
    """Measure in this process what its options say, and print the figures as one line of JSON.

    `serve` opens the system, gives `measure` what runs one operation to its end, and closes it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--warm-up-seconds", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()

    async def measure(once: Once) -> None:
        numbers = itertools.count()
        await _loop(once, numbers, options.at_once, options.warm_up_seconds)
        tune_garbage_collector()
        print(json.dumps(await _loop(once, numbers, options.at_once, options.seconds)), flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options, measure))


def tune_garbage_collector() -> None:
    """Do as `nexus-gateway serve` does for itself; here for whatever is measured."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


async def _loop(
    once: Once, numbers: "itertools.count[int]", at_once: int, seconds: float
) -> dict[str, Any]:
    latencies: list[float] = []
    began = time.perf_counter()
    cpu = own_cpu_seconds()

    async def client() -> None:
        while (start := time.perf_counter()) < began + seconds:
            await once(next(numbers))
            latencies.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as clients:
        for _ in range(at_once):
            clients.create_task(client())
    took = time.perf_counter() - began
    latencies.sort()
    return {
        "operations": len(latencies),
        "per_second": len(latencies) / took,
        "p50_ms": percentile_ms(latencies, 50),
        "p99_ms": percentile_ms(latencies, 99),
        "cpu_ms": 1000 * (own_cpu_seconds() - cpu) / max(1, len(latencies)),
    }
