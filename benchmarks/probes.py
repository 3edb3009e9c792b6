"""Starts, one at a time, to see how long their acceptance takes while something else goes on."""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from benchmarks.connections import ClientConnection

_REQUEST_SECONDS = 60.0


class ProbeFailed(Exception):
    """A start was not accepted."""


class Probe:
    """One keep-alive connection to a gateway, on which durable operations are started."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        assert url.hostname is not None
        assert url.port is not None
        self._address = url.hostname, url.port
        self._numbers = itertools.count()
        self._name = f"{os.getpid():x}-{time.time_ns():x}"
        self._connection: ClientConnection | None = None
        self.latencies: list[float] = []

    async def start(self) -> None:
        """Start one operation and note how long its acceptance took.

        Raises:
            ProbeFailed: It was not accepted.
        """
        connection = self._connection or await self._connect()
        body = b'{"name": "probe"}'
        request = (
            f"POST /services/bench/run HTTP/1.1\r\nHost: 127.0.0.1:{self._address[1]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Nexus-Request-Id: {self._name}-{next(self._numbers)}\r\n\r\n"
        )
        began = time.perf_counter()
        async with asyncio.timeout(_REQUEST_SECONDS):
            status, answer = await connection.request(request.encode() + body)
        if status != 201:
            raise ProbeFailed(f"a start was answered {status} {answer[:200]!r}")
        self.latencies.append(time.perf_counter() - began)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> ClientConnection:
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_connection(
            lambda: ClientConnection(loop), *self._address
        )
        return self._connection


async def probe_in_turn(
    base_urls: Sequence[str], seconds: float, pause_seconds: float
) -> list[list[float]]:
    """Start operations on gateways in turn, and return the sorted latencies of each.

    What slows the machine for a while slows all of them alike.
    """
    probes = [Probe(base_url) for base_url in base_urls]
    deadline = time.perf_counter() + seconds
    order = list(probes)
    while time.perf_counter() < deadline:
        for probe in order:
            await probe.start()
            await asyncio.sleep(pause_seconds)
        order.reverse()
    for probe in probes:
        probe.close()
    return [sorted(probe.latencies) for probe in probes]


async def probe_until(
    base_url: str, wait_for_end: Callable[[], None], pause_seconds: float
) -> list[float]:
    """Start operations until a wait on another thread is over, and return the sorted latencies."""
    probe = Probe(base_url)
    over = asyncio.create_task(asyncio.to_thread(wait_for_end))
    while not over.done():
        await probe.start()
        await asyncio.sleep(pause_seconds)
    over.result()
    probe.close()
    return sorted(probe.latencies)
