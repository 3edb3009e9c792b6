"""Both ends of the wire, as thin as they can be: the caller's connection, the callback receiver.

A client library would cost more than the server under measurement.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qs, urlsplit

import httptools

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class ClientConnection(asyncio.Protocol):
    """One keep-alive connection with one request under way at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._chunks: list[bytes] = []
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass.
        self._transport = cast("asyncio.Transport", transport)

    def request(self, data: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Send a request; the future has the answer's status and body."""
        assert self._transport is not None
        self._chunks = []
        self._answer = self._loop.create_future()
        self._transport.write(data)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail(error)

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        if not self._parser.should_keep_alive():
            self.closed = True
        if answer is not None and not answer.done():
            answer.set_result((self._parser.get_status_code(), b"".join(self._chunks)))

    def _fail(self, error: Exception | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(ConnectionError(str(error or "connection closed")))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One completion as it arrived."""

    token: str | None  # the caller's own header, replayed
    operation: str | None  # the query of the callback URL
    state: bytes | None
    body: bytes
    at: float  # time.perf_counter()


class CallbackReceiver(asyncio.Protocol):
    """Answers 200 to every completion and reports it."""

    def __init__(self, report: Callable[[Arrival], None]) -> None:
        self._report = report
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._token: str | None = None
        self._state: bytes | None = None
        self._chunks: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()  # its operation will count as lost

    def on_message_begin(self) -> None:
        self._url = b""
        self._token = self._state = None
        self._chunks = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        folded = name.lower()
        if folded == b"token":
            self._token = value.decode()
        elif folded == b"nexus-operation-state":
            self._state = value

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        query = parse_qs(urlsplit(self._url.decode()).query)
        operation = query.get("op", [None])[0]
        self._report(Arrival(self._token, operation, self._state, b"".join(self._chunks), now))
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_OK)
