"""Receives completions in a process of its own: `python -m benchmarks.receiver`.

As little as HTTP allows: a POST is answered 200 at once and remembered, one to `/late` only after
some seconds. `GET /arrivals` tells what has arrived.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import cast

import httptools
import uvloop

from benchmarks.completions import Arrival, read_body
from benchmarks.machine import raise_open_files
from benchmarks.servers import Server

LATE = "/late"

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_ARRIVALS = b"/arrivals"


def receiver(folder: Path, *, name: str = "receiver", late_seconds: float = 0.0) -> Server:
    """Start a receiver on a free port."""
    command = [sys.executable, "-m", "benchmarks.receiver", "--late-seconds", str(late_seconds)]
    return Server(name, command, folder, {})


def arrivals(server: Server) -> list[Arrival]:
    """Return what has arrived at a receiver, in order."""
    with urllib.request.urlopen(f"{server.base_url}/arrivals", timeout=60) as response:  # noqa: S310  # our own
        return [Arrival(*one) for one in json.load(response)]


class _Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seen: list[tuple[bytes, float]], late_seconds: float
    ) -> None:
        self._loop = loop
        self._seen = seen
        self._late_seconds = late_seconds
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()  # it will be missed

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, chunk: bytes) -> None:
        self._body += chunk

    def on_message_complete(self) -> None:
        if self._url == _ARRIVALS:
            self._answer(_told(self._seen))
            return
        self._seen.append((self._body, time.perf_counter()))
        if self._url.startswith(LATE.encode()):
            self._loop.call_later(self._late_seconds, self._answer, _OK)
        else:
            self._answer(_OK)

    def _answer(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _told(seen: list[tuple[bytes, float]]) -> bytes:
    body = json.dumps([(*read_body(body), at) for body, at in seen]).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def _serve(late_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    seen: list[tuple[bytes, float]] = []
    server = await loop.create_server(
        lambda: _Connection(loop, seen, late_seconds), "127.0.0.1", 0, backlog=4096
    )
    port = server.sockets[0].getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--late-seconds", type=float, default=0.0)
    raise_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args().late_seconds))
