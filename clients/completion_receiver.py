"""Receiving completions: an ASGI app to mount wherever a public URL leads."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from nexusrpc import HandlerError, HandlerErrorType

from clients.expected_completions import ExpectedCompletion, ExpectedCompletions
from clients.retry import Clock
from clients.sender import MAX_RESPONSE_BYTES
from clients.signatures import TOLERANCE, SignatureInvalid, verify_webhook
from nexus_spec import (
    Completion,
    Headers,
    InvalidWireValue,
    failure_of_error,
    failure_to_bytes,
    parse_completion,
    status_of,
)

__all__ = ["CompletionReceiver", "OnCompletion"]

OnCompletion: TypeAlias = Callable[[Completion, Headers], Awaitable[None]]
"""Takes a completion and the headers it came with; raises HandlerError to refuse it."""

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_LOG = logging.getLogger(__name__)
# Ids take 54 characters of the 1000 that Temporal allows a callback URL.
_MAX_PUBLIC_URL = 900
_DRAINED_BYTES = 8 * MAX_RESPONSE_BYTES


class CompletionReceiver:
    """Takes POSTed completions and hands each to whoever awaits it, or to `on_completion`.

    Given to a `NexusClient` it needs `public_url`, the URL under which the app is mounted: each
    start then carries a callback URL of its own below it, with an unguessable id. A completion for
    such an id is kept for the handle, also when it arrives before the start was answered, and a
    repeated one is accepted and ignored. The ids are those of this process: completions of
    operations that an earlier process started are 404. All other completions go to
    `on_completion`, or are 404 without it.

    With `secrets` only completions are taken that one of them has signed, no longer ago than
    `tolerance`. `nexus-gateway signing-keys secret` prints them and `parse_secret` reads them;
    while keys are rotated there are two. It holds for the ids of this process as well: they cannot
    be guessed, but proxies and their logs see URLs. Give none where the sender does not sign, as
    a Temporal server does not. `clock` says what time it is.

    Answers 200 when taken, 400 to what is no completion, 401 to what no trusted secret has signed,
    404 to an unknown id, the error that `on_completion` raised, and 500 to any other exception,
    whose text stays in the log.

    Raises:
        ValueError: `public_url` is none that can be called, or `secrets` is empty.

    Spec: SPEC.md#callback-urls
    """

    def __init__(
        self,
        on_completion: OnCompletion | None = None,
        *,
        public_url: str | None = None,
        max_body_bytes: int = MAX_RESPONSE_BYTES,
        secrets: Sequence[bytes] | None = None,
        tolerance: timedelta = TOLERANCE,
        clock: Clock | None = None,
    ) -> None:
        if public_url is not None:
            _check_public_url(public_url)
        if secrets is not None and not secrets:
            raise ValueError("secrets is empty: give one, or None to take unsigned completions")
        self._on_completion = on_completion
        self._expected = ExpectedCompletions(public_url) if public_url is not None else None
        self._max_body_bytes = max_body_bytes
        self._secrets = tuple(secrets) if secrets is not None else None
        self._tolerance = tolerance
        self._clock = clock or Clock()

    def expect(self) -> ExpectedCompletion:
        """Return a completion to come; its `url` is the callback URL of one start.

        Raises:
            ValueError: the receiver was made without `public_url`.
        """
        if self._expected is None:
            raise ValueError("this CompletionReceiver has no public_url to make callback URLs of")
        return self._expected.expect()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1003})
            case other:
                raise RuntimeError(f"unknown ASGI scope type {other!r}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(receive)
            await self._take(scope, body)
        except _CallerLeft:
            return
        except HandlerError as error:
            await _send_error(send, error)
        except Exception:  # noqa: BLE001 - a bug of on_completion; its text must not leave
            _LOG.exception("a completion could not be handled")
            await _send_error(send, HandlerError("internal error", type=HandlerErrorType.INTERNAL))
        else:
            await _send(send, 200, [], b"")

    async def _take(self, scope: Scope, body: bytes) -> None:
        if scope["method"] != "POST":
            raise _bad_request(f"completions are sent with POST, not {scope['method']}")
        headers = Headers.from_raw(scope["headers"])
        # Before anything else is told: a stranger does not learn which ids there are.
        self._verify(headers, body)
        last_segment = scope["path"].rpartition("/")[2]
        issued = self._expected is not None and self._expected.issued(last_segment)
        if not issued and self._on_completion is None:
            raise HandlerError("no such callback", type=HandlerErrorType.NOT_FOUND)
        try:
            completion = parse_completion(headers, body)
        except InvalidWireValue as error:
            raise _bad_request(str(error)) from error
        if issued and self._expected is not None:
            self._expected.deliver(last_segment, completion)
        elif self._on_completion is not None:
            await self._on_completion(completion, headers)

    def _verify(self, headers: Headers, body: bytes) -> None:
        if self._secrets is None:
            return
        try:
            verify_webhook(
                headers, body, self._secrets, now=self._clock.utcnow(), tolerance=self._tolerance
            )
        except SignatureInvalid as error:
            raise HandlerError(str(error), type=HandlerErrorType.UNAUTHENTICATED) from error

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _CallerLeft
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(chunk)
            if size <= self._max_body_bytes:
                body += chunk
            elif size > _DRAINED_BYTES:
                break
        if size > self._max_body_bytes:
            # Only now: a peer that is still sending would lose an answer given early.
            raise _bad_request(f"the completion is larger than {self._max_body_bytes} bytes")
        return bytes(body)


class _CallerLeft(Exception):
    """The peer closed the connection before its request was complete."""


def _check_public_url(url: str) -> None:
    parts = urlsplit(url)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or len(url) > _MAX_PUBLIC_URL
    ):
        raise ValueError(
            "public_url is an http or https URL of at most"
            f" {_MAX_PUBLIC_URL} ASCII characters, without user, query and fragment"
        )


def _bad_request(message: str) -> HandlerError:
    return HandlerError(message, type=HandlerErrorType.BAD_REQUEST)


async def _send_error(send: Send, error: HandlerError) -> None:
    headers = [(b"content-type", b"application/json")]
    if error.retryable_override is not None:
        value = b"true" if error.retryable_override else b"false"
        headers.append((b"nexus-request-retryable", value))
    body = failure_to_bytes(failure_of_error(error))
    await _send(send, status_of(error.raw_error_type), headers, body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    """Follow the server's lifespan, so that the app also runs on its own."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
