"""The few ASGI pieces that every route here uses: reading a bounded body, sending an answer."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from nexusrpc import HandlerError, HandlerErrorType

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_SECONDS = 10.0
_BODY_SECONDS = 60.0


@dataclass(slots=True)
class Answer:
    """A response, ready to send; `Content-Length` is added on the way."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


async def send_answer(send: Send, answer: Answer, method: str = "GET") -> None:
    """Send a response; to HEAD without its body, whose length is told all the same.

    Spec: RFC 9110, section 9.3.2
    """
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers
    ]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    body = b"" if method == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Read a request's body.

    Of a body over the limit the rest is read and thrown away, up to a bound: a connection that is
    closed while the peer still sends loses the answer.

    Raises:
        HandlerError: BAD_REQUEST; the body is longer than `limit_bytes`. REQUEST_TIMEOUT; it did
            not arrive within a minute.
        Disconnected: The caller hung up.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) <= limit_bytes:
            return body
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read_chunks(message, receive, limit_bytes)
    except TimeoutError:
        raise HandlerError(
            "the request's body did not arrive in time", type=HandlerErrorType.REQUEST_TIMEOUT
        ) from None


class Disconnected(Exception):
    """The caller hung up in the middle of its request."""


async def _read_chunks(message: Message, receive: Receive, limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            await _drain(receive, message)
            raise _too_large(limit_bytes)
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()


async def _drain(receive: Receive, message: Message) -> None:
    drained = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while message.get("more_body") and drained < _DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
    except TimeoutError:
        pass


def _too_large(limit_bytes: int) -> HandlerError:
    return HandlerError(
        f"the request's body is over the limit of {limit_bytes} bytes",
        type=HandlerErrorType.BAD_REQUEST,
    )


def query_values(scope: Scope) -> dict[str, list[str]]:
    """Return the query parameters of a request.

    Raises:
        HandlerError: BAD_REQUEST; the query is not percent-encoded UTF-8.
    """
    raw: bytes = scope.get("query_string", b"")
    if not raw:
        return {}
    try:
        return parse_qs(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100
        )
    except ValueError as error:
        raise HandlerError(
            "the query string is not percent-encoded UTF-8", type=HandlerErrorType.BAD_REQUEST
        ) from error
