"""A server that does with its operations what a test says, and sends their completions itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

Headers = dict[str, str]


@dataclass(frozen=True)
class Behaviour:
    """What becomes of an operation."""

    status: int = 201
    completions: int = 1
    state: str = "succeeded"
    keeps_body: bool = True


Decide = Callable[[int], Behaviour]


@asynccontextmanager
async def serving(decide: Decide) -> AsyncIterator[str]:
    """Serve; `decide` is given the number of the operation, from 0."""
    server = _FakeServer(decide)
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield f"http://127.0.0.1:{port}/bench/run"
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)


class _FakeServer:
    def __init__(self, decide: Decide) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._decide = decide
        self._seen = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await _read(reader)) is not None:
                target, headers, body = message
                behaviour = self._decide(self._seen)
                self._seen += 1
                writer.write(_answer(behaviour, target, body))
                await writer.drain()
                if "callback" in target and behaviour.status == 201:
                    task = asyncio.create_task(_complete(behaviour, target, headers, body))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
        finally:
            writer.close()


def _answer(behaviour: Behaviour, target: str, body: bytes) -> bytes:
    sent = body if "callback" not in target else b'{"token": "t", "state": "running"}'
    head = f"HTTP/1.1 {behaviour.status} -\r\nContent-Length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


async def _complete(behaviour: Behaviour, target: str, headers: Headers, body: bytes) -> None:
    url = urlsplit(parse_qs(urlsplit(target).query)["callback"][0])
    sent = body if behaviour.keeps_body else json.dumps({}).encode()
    for _ in range(behaviour.completions):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        head = (
            f"POST {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Token: {headers['nexus-callback-token']}\r\n"
            f"Nexus-Operation-State: {behaviour.state}\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        writer.write(head.encode() + sent)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[str, Headers, bytes] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return first.split(" ")[1], headers, await reader.readexactly(int(headers["content-length"]))
