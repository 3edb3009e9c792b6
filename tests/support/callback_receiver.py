"""A receiver of completions on a real socket that records what arrives, byte for byte.

Open it with `async with CallbackReceiver() as receiver`, script its answers with
`receiver.will_answer(503, Answer(429, {"Retry-After": "1"}), 200)`, start an operation with
`callback=receiver.url("/done?id=7")`, and wait for what arrives: `await receiver.received(2)`.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.support.raw_http import read_chunks


@dataclass(frozen=True)
class Received:
    """A request as it arrived; `at` is `time.monotonic()` in seconds."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def get(self, name: str) -> str | None:
        """Return the first value of a header, None where it is absent."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to answer; `hold` keeps the answer back until it is set."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: asyncio.Event | None = None


# Close the connection after the request was read: its outcome is then unknown to the sender.
HANG_UP = Answer(status=0)

_OK = Answer()


class CallbackReceiver:
    """Listens on a free port of 127.0.0.1 while its context is open.

    Args:
        answer: Decides each answer by the request; the script of `will_answer` goes first.
    """

    def __init__(self, answer: Callable[[Received], Answer] | None = None) -> None:
        self.requests: list[Received] = []
        self._decide = answer
        self._script: list[Answer] = []
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port = 0

    def will_answer(self, *answers: int | Answer) -> None:
        """Queue answers; once they are used up, every request gets 200 (or `answer`'s)."""
        self._script += [Answer(a) if isinstance(a, int) else a for a in answers]

    def url(self, path: str = "/callback") -> str:
        """Return a URL that is received here."""
        return f"http://127.0.0.1:{self._port}{path}"

    async def received(self, count: int = 1, *, timeout_seconds: float = 15.0) -> list[Received]:
        """Wait until at least so many requests have arrived in all, and return every one.

        Raises:
            TimeoutError: They did not.
        """
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return list(self.requests)

    async def one(self, path: str, *, timeout_seconds: float = 15.0) -> Received:
        """Wait for the first request to a path (of the target, without query).

        Raises:
            TimeoutError: There was none.
        """
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: any(r.path == path for r in self.requests))
        return next(r for r in self.requests if r.path == path)

    async def start(self, port: int = 0) -> None:
        """Begin to listen; on the port of an earlier receiver to take its place."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", port, reuse_address=True, limit=2**20
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection."""
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # hung up, or told to stop
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if self._script:
            answer = self._script.pop(0)
        else:
            answer = self._decide(request) if self._decide is not None else _OK
        if answer.hold is not None:
            await answer.hold.wait()
        if answer is HANG_UP:
            return False
        lines = [f"HTTP/1.1 {answer.status} Scripted", f"Content-Length: {len(answer.body)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
        await writer.drain()
        return True


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    at = time.monotonic()
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = request_line.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name, value.strip(" \t")) for name, _, value in pairs)
    received = Received(method, target, headers, b"", at)
    if (received.get("transfer-encoding") or "").lower() == "chunked":
        body = await read_chunks(reader)
    else:
        body = await reader.readexactly(int(received.get("content-length") or 0))
    return Received(method, target, headers, body, at)
