"""Delivers in a process of its own, and prints figures as JSON: `python -m benchmarks.delivering`.

- `bare`: aiohttp's client posts completions, so many at a time.
- `sender`: the gateway's sender does, with its guard.
- `outbox`: the delivery service delivers what is due in a database.
- `endings`: operations end at a steady rate, and the delivery service delivers their completions.
"""

import argparse
import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import uvloop

from benchmarks.closed_loop import tune_garbage_collector
from benchmarks.completions import CALLER_HEADERS, all_headers_of, body_of, headers_of, token_of
from benchmarks.machine import own_cpu_seconds, own_peak_bytes, raise_open_files
from callbacks import outbox
from callbacks.breaker import BreakerPolicy
from callbacks.database import Database, Transaction, open_database
from callbacks.delivery import DeliveryService, DeliverySettings
from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.egress import EgressPolicy
from callbacks.leases import Lease
from callbacks.outbox import Delivery, Registration, RenderedCompletion, Terms
from callbacks.sender import AiohttpSender
from callbacks.signing import Signer
from callbacks.signing_keys import CALLBACKS, SigningKeys

_POST_SECONDS = 10.0
_POLL_SECONDS = 0.002
_DRAIN_SECONDS = 5.0
_NEVER = 10**6
_PRIVATE = EgressPolicy(allow_private=True)

Post = Callable[[int], Awaitable[int]]


class Meter:
    """What passes between two moments, by delivery."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self._began = self._read()

    def figures(self, deliveries: int) -> dict[str, Any]:
        """Return what there is to tell of so many deliveries since the meter was made."""
        seconds, cpu, commits, writes = (
            ended - began for began, ended in zip(self._began, self._read(), strict=True)
        )
        return {
            "deliveries": deliveries,
            "seconds": seconds,
            "per_second": deliveries / seconds,
            "cpu_ms": 1000 * cpu / deliveries,
            "commits": commits / deliveries,
            "writes": writes / deliveries,
            "peak_bytes": own_peak_bytes(),
        }

    def _read(self) -> tuple[float, float, int, int]:
        database = self._database
        counts = (0, 0) if database is None else (database.batches, database.writes)
        return time.perf_counter(), own_cpu_seconds(), *counts


# ------------------------------------------------------------ without an outbox


async def bare(options: argparse.Namespace) -> dict[str, Any]:
    """Post with aiohttp's client as it comes."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(number: int) -> int:
            headers = [*all_headers_of(number), ("User-Agent", "nexus-rpc-gateway")]
            async with session.post(options.url, data=body_of(number), headers=headers) as response:
                await response.read()
                return response.status

        return await _posted(post, options)


async def sender(options: argparse.Namespace) -> dict[str, Any]:
    """Post with the sender, which asks the egress guard."""
    guarded = AiohttpSender(_PRIVATE, connections_per_destination=options.at_once)

    async def post(number: int) -> int:
        response = await guarded.post(
            options.url, all_headers_of(number), body_of(number), timeout=_POST_SECONDS
        )
        return response.status

    try:
        return await _posted(post, options)
    finally:
        await guarded.aclose()


async def _posted(post: Post, options: argparse.Namespace) -> dict[str, Any]:
    async def post_all(numbers: range) -> None:
        left = iter(numbers)

        async def poster() -> None:
            for number in left:
                status = await post(number)
                assert status == 200, status

        async with asyncio.TaskGroup() as posters:
            for _ in range(options.at_once):
                posters.create_task(poster())

    await post_all(range(1, options.warm_up + 1))
    tune_garbage_collector()
    meter = Meter()
    await post_all(range(options.warm_up + 1, options.deliveries + 1))
    return meter.figures(options.deliveries - options.warm_up)


# ------------------------------------------------------------ with the outbox


@asynccontextmanager
async def service_on(
    url: str, rule: DeliveryRule
) -> AsyncIterator[tuple[Database, DeliveryService]]:
    """Run the delivery service on a database as the gateway does, its names on this machine."""
    database = await open_database(url)
    lease = Lease(database)
    await lease.open()
    service = DeliveryService(
        database,
        AiohttpSender(
            _PRIVATE, resolver=_this_machine, connections_per_destination=rule.concurrency
        ),
        DeliverySettings(rules=DeliveryRules(rule)),
        lease=lease,
        sign=Signer(SigningKeys(database, CALLBACKS)).headers,
    )
    await service.open()
    try:
        yield database, service
    finally:
        await service.close(_DRAIN_SECONDS)
        await lease.close()
        await database.aclose()


async def _this_machine(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def deliver(options: argparse.Namespace) -> dict[str, Any]:
    """Deliver what is due, from the first to the last outcome that is on the disk."""
    rule = DeliveryRule(concurrency=options.at_once)
    async with service_on(options.database, rule) as (database, service):
        await _until(lambda: service.stats.delivered >= options.warm_up)
        tune_garbage_collector()
        meter, before = Meter(database), service.stats.delivered
        await _until(lambda: service.stats.delivered >= options.deliveries and not service.held)
        return meter.figures(service.stats.delivered - before)


async def end(options: argparse.Namespace) -> dict[str, Any]:
    """End operations at a steady rate, one destination after the other in turn."""
    rule = DeliveryRule(
        attempt_timeout_seconds=options.timeout_seconds,
        breaker=BreakerPolicy(failures=_NEVER) if options.without_breaker else BreakerPolicy(),
    )
    async with service_on(options.database, rule) as (database, service):
        tune_garbage_collector()
        meter, began, late = Meter(database), time.perf_counter(), 0.0
        targets = itertools.cycle(map(_registration, options.urls))
        for number in range(1, options.deliveries + 1):
            wait = began + number / options.per_second - time.perf_counter()
            late = max(late, -wait)
            await asyncio.sleep(max(0.0, wait))
            ending = Ending(number, next(targets), time.time_ns() // 1_000_000, service)
            database.write(ending).add_done_callback(lambda done: service.submit(done.result()))
        await asyncio.sleep(1)
        return {**meter.figures(options.deliveries), "late_seconds": late}


@dataclass(frozen=True, slots=True)
class Ending:
    """An operation starts and ends in one transaction, with one callback."""

    number: int
    registration: Registration
    now: int
    terms: Terms

    @property
    def subject(self) -> str | None:
        """The operation."""
        return token_of(self.number)

    async def apply(self, tx: Transaction) -> list[Delivery]:
        """Freeze its completion, as the engine does, and return what is to be sent now."""
        token = token_of(self.number)
        await outbox.register_first(tx, token, self.registration, self.now)
        return await outbox.freeze(tx, token, self._completion, now=self.now, terms=self.terms)

    def _completion(self) -> RenderedCompletion:
        return headers_of(self.number), body_of(self.number, time.perf_counter())


def _registration(url: str) -> Registration:
    return Registration(url, "/".join(url.split("/")[:3]), CALLER_HEADERS)


async def _until(condition: Callable[[], bool]) -> None:
    # Whoever started this process ends it if that takes too long.
    while not condition():  # noqa: ASYNC110  # the service tells nobody
        await asyncio.sleep(_POLL_SECONDS)


# ------------------------------------------------------------ the command


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    modes = parser.add_subparsers(required=True)

    def mode(name: str, run: Callable[..., Coroutine[Any, Any, Any]]) -> argparse.ArgumentParser:
        added = modes.add_parser(name)
        added.set_defaults(run=run)
        added.add_argument("--deliveries", type=int, required=True)
        return added

    for name, run in (("bare", bare), ("sender", sender), ("outbox", deliver)):
        added = mode(name, run)
        added.add_argument("--database" if run is deliver else "--url", required=True)
        added.add_argument("--at-once", type=int, required=True)
        added.add_argument("--warm-up", type=int, default=0)
    ends = mode("endings", end)
    ends.add_argument("--database", required=True)
    ends.add_argument("--per-second", type=float, required=True)
    ends.add_argument("--timeout-seconds", type=float, required=True)
    ends.add_argument("--without-breaker", action="store_true")
    ends.add_argument("--urls", nargs="+", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    # Deliveries that fail are meant to, and each would be told.
    logging.basicConfig(level=logging.CRITICAL)
    raise_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(options.run(options)), sys.stdout)
