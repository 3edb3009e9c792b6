"""The three-step operation on the gateway, in this process; see `durable_steps`.

Through the whole app as an ASGI server calls it, so that a start is parsed, checked and answered as
any other; only the sockets are left out.
"""

import argparse
import asyncio
import json
import logging
from collections.abc import MutableMapping
from typing import Any

from benchmarks.bench_service import services
from benchmarks.closed_loop import Measure, run_child
from gateway import create_app

_PATH = "/services/bench/steps"
_HEADERS = [
    (b"host", b"127.0.0.1:8080"),
    (b"content-type", b"application/json"),
    (b"prefer", b"wait=10"),
]

Message = MutableMapping[str, Any]


async def serve(options: argparse.Namespace, measure: Measure) -> None:
    """Open the app, measure, and close it."""
    logging.basicConfig(level=logging.WARNING)
    app = create_app(services, database=options.database)

    async def once(number: int) -> None:
        body = json.dumps({"id": number, "name": "bench", "pad": "x" * 70}).encode()
        exchange = _Exchange(body)
        await app(_scope(number, len(body)), exchange.receive, exchange.send)
        assert exchange.status == 200, exchange.body
        assert json.loads(exchange.body)["text"] == "..."

    async with app.router.lifespan_context(app):
        await measure(once)


class _Exchange:
    """One request and its answer, as the server's side of ASGI."""

    def __init__(self, body: bytes) -> None:
        self._request: bytes | None = body
        self.status = 0
        self.body = b""

    async def receive(self) -> Message:
        body, self._request = self._request, None
        if body is None:
            # The caller stays: whoever watches for its leaving waits, and is cancelled.
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


def _scope(number: int, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": _PATH,
        "raw_path": _PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            *_HEADERS,
            (b"content-length", str(length).encode()),
            (b"nexus-request-id", str(number).encode()),
        ],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }


if __name__ == "__main__":
    run_child(serve)
