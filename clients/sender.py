"""One HTTP exchange: bytes out, a bounded answer in, and whether anything was sent at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol

import httpx

from clients.errors import MalformedResponse, UnknownOutcome, Unreachable
from nexus_spec import PAYLOAD_BYTES, Headers, InvalidWireValue, is_header_name, is_header_value

__all__ = ["HttpxSender", "Sender", "SentResponse", "exchange", "open_http_client"]

MAX_RESPONSE_BYTES = PAYLOAD_BYTES + 64 * 1024
"""The largest payload of the protocol, and room for a Failure around it."""

_CONNECTION_HEADERS = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding"}
)


@dataclass(frozen=True)
class SentResponse:
    """What a peer answered: the status, the headers, the body as far as it was read.

    `address` is the peer's `host:port` as dialled, where the transport tells it.
    """

    status: int
    headers: Headers
    body: bytes
    address: str | None


class Sender(Protocol):
    """Posts bytes to a URL; the seam at which delivery chooses its HTTP client and its guard."""

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        """Post once, following no redirect, and answer with whatever status came back.

        `timeout` bounds the whole exchange, in seconds, the reading of the answer included.

        Raises:
            Unreachable: nothing was sent, so the peer knows nothing of it.
            UnknownOutcome: it may have been received.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections that are held."""
        ...


class HttpxSender:
    """The `Sender` of client code: httpx, with its connections kept, no cookies and no redirects.

    It calls whatever address a URL resolves to. To call URLs that strangers chose, use the sender
    of the `callbacks` package, which refuses private addresses. An answer is read up to
    `max_response_bytes`; the rest is cut off, since the status alone says what became of a post.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self._http = open_http_client(transport)
        self._max_response_bytes = max_response_bytes

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        """Post once, following no redirect, and answer with whatever status came back.

        `timeout` bounds the whole exchange, in seconds. Headers that belong to the connection
        (`Host`, `Content-Length` and the like) are left out: the connection writes its own.

        Raises:
            InvalidWireValue: a header cannot be sent.
            Unreachable: nothing was sent, so the peer knows nothing of it.
            UnknownOutcome: it may have been received.
        """
        return await exchange(
            self._http,
            "POST",
            url,
            headers,
            body,
            timeout=timeout,
            max_response_bytes=self._max_response_bytes,
            truncate=True,
        )

    async def aclose(self) -> None:
        """Close the connections that are held."""
        await self._http.aclose()


def open_http_client(transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    """Open an httpx client that carries nothing over from one request to the next.

    Without a `transport` the usual proxy variables of the environment are honoured.
    """
    return httpx.AsyncClient(
        transport=transport,
        # httpx keeps and resends cookies, and has no switch for it: this policy accepts none.
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        # A few bytes can unpack to gigabytes; a body that may hold 2 MiB need not be packed.
        headers={"accept-encoding": "identity", "user-agent": "nexus-rpc-gateway"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )


async def exchange(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    *,
    timeout: float,
    max_response_bytes: int = MAX_RESPONSE_BYTES,
    truncate: bool = False,
) -> SentResponse:
    """Send one request and read its answer, all within `timeout` seconds.

    An answer of more than `max_response_bytes` is cut off where `truncate` is set; so is one that
    breaks off after its status.

    Raises:
        InvalidWireValue: a header cannot be sent.
        MalformedResponse: the answer is too large or compressed, and `truncate` is not set.
        Unreachable: nothing was sent.
        UnknownOutcome: the request may have been received.
    """
    progress = _Progress()
    raw_headers = _raw_headers(headers)
    reading: _Reading | None = None
    try:
        # httpx times single reads: only a bound on the whole ends a peer that drips bytes.
        async with asyncio.timeout(timeout):
            request = http.build_request(
                method,
                url,
                headers=raw_headers,
                content=body,
                timeout=timeout,
                extensions={"trace": progress.note},
            )
            response = await http.send(request, stream=True)
            try:
                reading = _Reading(response, max_response_bytes, truncate=truncate)
                await reading.read()
            finally:
                await response.aclose()
            return reading.so_far()
    except (TimeoutError, httpx.TimeoutException) as error:
        if reading is not None and truncate:
            return reading.so_far()
        raise _not_answered(error, progress, f"no answer within {timeout:.3g} s") from error
    except httpx.RequestError as error:
        if reading is not None and truncate:
            return reading.so_far()
        raise _not_answered(error, progress, str(error) or type(error).__name__) from error
    except httpx.InvalidURL as error:
        raise Unreachable(f"not a URL that can be called: {error}") from error


_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


def _not_answered(
    error: Exception, progress: _Progress, message: str
) -> Unreachable | UnknownOutcome:
    if isinstance(error, _NEVER_SENT) or progress.only_dialled():
        return Unreachable(message)
    return UnknownOutcome(message)


class _Progress:
    """How far a request got, from the events of httpx's own transport; others report none."""

    def __init__(self) -> None:
        self._dialled = False
        self._sending = False

    async def note(self, event: str, _info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self._dialled = True
        elif event.endswith("send_request_headers.started"):
            self._sending = True

    def only_dialled(self) -> bool:
        return self._dialled and not self._sending


class _Reading:
    """An answer whose status is known and whose body is being read."""

    def __init__(self, response: httpx.Response, max_bytes: int, *, truncate: bool) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._truncate = truncate
        self._body = bytearray()
        # Asked now, because a closed connection no longer knows its peer.
        self._address = _peer_address(response)

    async def read(self) -> None:
        if not self._truncate:
            self._refuse_compression()
        async for chunk in self._chunks():
            self._body += chunk
            if len(self._body) > self._max_bytes:
                if not self._truncate:
                    raise MalformedResponse(
                        f"the answer is larger than {self._max_bytes} bytes",
                        status=self._response.status_code,
                    )
                del self._body[self._max_bytes :]
                return

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self._response.is_stream_consumed:
            # The answer of a transport that is no network, such as httpx.MockTransport.
            yield self._response.content
        else:
            async for chunk in self._response.aiter_raw():
                yield chunk

    def _refuse_compression(self) -> None:
        encoding = self._response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise MalformedResponse(
                f"the answer has Content-Encoding {encoding[:40]!r}, but only 'identity' was asked"
                " for",
                status=self._response.status_code,
            )

    def so_far(self) -> SentResponse:
        return SentResponse(
            self._response.status_code,
            Headers.from_raw(self._response.headers.raw),
            bytes(self._body),
            self._address,
        )


def _peer_address(response: httpx.Response) -> str | None:
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    if not isinstance(address, tuple) or len(address) < 2:
        return None
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _raw_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Check and encode: httpx takes names with spaces in them, and refuses values beyond ASCII."""
    raw = []
    for name, value in headers:
        if not is_header_name(name):
            raise InvalidWireValue(f"{name[:100]!r} is not a valid header name")
        if not is_header_value(value):
            # Without the value: it may be a secret.
            raise InvalidWireValue(f"the value of header {name!r} cannot be sent in HTTP")
        if name.lower() not in _CONNECTION_HEADERS:
            raw.append((name.encode("ascii"), value.encode("latin-1")))
    return raw
