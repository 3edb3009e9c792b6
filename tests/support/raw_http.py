"""HTTP/1.1 byte by byte, for requests that a client library would refuse or tidy up.

    answer = await exchange(base_url, request("POST", "/services/a/b", body=b"{}"))

`request` renders what a test wants to be unusual; anything else may be sent as bytes literally.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 15.0

HeaderPairs = Iterable[tuple[str | bytes, str | bytes]]


class NoAnswer(Exception):
    """The connection was closed before an answer was complete."""


@dataclass(frozen=True)
class RawResponse:
    """An answer as it was on the wire, chunks joined."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str | None:
        """Return the first value of a header, None where it is absent."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def request(
    method: str,
    target: str | bytes,
    headers: HeaderPairs | Mapping[str, str] = (),
    body: bytes = b"",
    *,
    host: str | None = "127.0.0.1",
    content_length: bool = True,
) -> bytes:
    """Render a request; nothing is checked or escaped.

    Args:
        method: The method.
        target: The raw request target.
        headers: Pairs, so that a name may repeat; text is sent as latin-1.
        body: The body.
        host: The value of `Host`; None sends none.
        content_length: Whether to send `Content-Length`.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [b"%s %s HTTP/1.1" % (_raw(method), _raw(target))]
    if host is not None:
        lines.append(b"Host: " + _raw(host))
    if content_length:
        lines.append(b"Content-Length: %d" % len(body))
    lines += [_raw(name) + b": " + _raw(value) for name, value in pairs]
    return b"\r\n".join([*lines, b"", b""]) + body


class RawConnection:
    """One connection, for requests in pieces, several in a row, or hung up upon."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def read_response(
        self, *, method: str = "POST", timeout_seconds: float = TIMEOUT_SECONDS
    ) -> RawResponse:
        """Read one answer, a `100 Continue` included.

        Raises:
            NoAnswer: The connection was closed before.
            TimeoutError: It did not arrive in time.
        """
        async with asyncio.timeout(timeout_seconds):
            try:
                return await self._read(method)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise NoAnswer(f"the connection was closed: {error!r}") from error

    async def at_end(self, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
        """Wait for the peer to close; False where it sends something instead."""
        async with asyncio.timeout(timeout_seconds):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # the peer was faster

    async def _read(self, method: str) -> RawResponse:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        _, status_text, reason = status_line.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        headers = tuple((name, value.strip()) for name, _, value in pairs)
        found = RawResponse(int(status_text), reason, headers, b"")
        if method == "HEAD" or found.status < 200 or found.status in (204, 304):
            return found
        if (found.get("transfer-encoding") or "").lower() == "chunked":
            body = await read_chunks(self.reader)
        elif (length := found.get("content-length")) is not None:
            body = await self.reader.readexactly(int(length))
        else:
            body = await self.reader.read()
        return RawResponse(found.status, reason, headers, body)


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[RawConnection]:
    """Open a connection to a server; it is closed at the end."""
    parts = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
    connection = RawConnection(reader, writer)
    try:
        yield connection
    finally:
        await connection.close()


async def exchange(
    base_url: str,
    raw: bytes,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> RawResponse:
    """Send one request, as the bytes given, on a new connection, and return the answer.

    Raises:
        NoAnswer: The connection was closed without one.
        TimeoutError: It did not arrive in time.
    """
    method = raw.partition(b" ")[0].decode("latin-1")
    async with connect(base_url) as connection:
        try:
            await connection.send(raw)
        except ConnectionError:
            pass  # refused while still sending: the answer may be there all the same
        return await connection.read_response(method=method, timeout_seconds=timeout_seconds)


def chunked(*chunks: bytes) -> bytes:
    """Return a body for `Transfer-Encoding: chunked`, its end included."""
    framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return b"".join([*framed, b"0\r\n\r\n"])


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body up to its end."""
    parts: list[bytes] = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")
