"""One Nexus endpoint: where it is, how it is called, and with what patience."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import httpx
from nexusrpc import Content, Serializer

from clients.errors import MalformedResponse
from clients.retry import Clock, RetryPolicy, send_with_retries
from clients.sender import SentResponse, exchange, open_http_client
from nexus_spec import (
    InvalidWireValue,
    PayloadSerializer,
    content_headers,
    format_duration,
    operation_path,
)
from nexus_spec.headers import FAILURE_SUPPORT, OPERATION_TIMEOUT, REQUEST_TIMEOUT

__all__ = ["Endpoint", "Seconds", "as_seconds", "check_base_url", "content_of"]

Seconds: TypeAlias = float | timedelta
"""A duration: a number of seconds, or a timedelta."""


class Endpoint:
    """Calls the routes of one endpoint, again where the protocol allows it.

    `timeout` is the patience for one call with its retries, `request_timeout` for one HTTP request,
    both in seconds. `headers` go out with every request and stay out of the representation.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        timeout: float,
        request_timeout: float,
        retry: RetryPolicy,
        transport: httpx.AsyncBaseTransport | None,
        serializer: Serializer | None,
        clock: Clock,
    ) -> None:
        check_base_url(base_url)
        if timeout <= 0 or request_timeout <= 0:
            raise ValueError("timeout and request_timeout are positive numbers of seconds")
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self.request_timeout = request_timeout
        self.clock = clock
        self._headers = dict(headers)
        self._retry = retry
        self._http = open_http_client(transport)
        self._serializer: Serializer = serializer if serializer is not None else PayloadSerializer()

    async def call(
        self,
        method: str,
        service: str,
        operation: str,
        action: str = "operation",
        *,
        judge: Callable[[SentResponse], Exception | None],
        headers: Sequence[tuple[str, str]] = (),
        user_headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float | None = None,
        operation_timeout: float | None = None,
        wait: float = 0.0,
    ) -> SentResponse:
        """Send a request until it is answered to `judge`'s satisfaction, and return that answer.

        `wait` is how long the peer was asked to hold the request open; it comes on top of both
        patiences. `operation_timeout` runs from this call: each attempt tells what is left of it.

        Raises:
            HandlerError, OperationError: what the peer reported.
            ClientError: the request failed on this side or on the way.

        Spec: SPEC.md#request-timeout
        """
        url = self.base_url + operation_path(service, operation, action)
        if query:
            url += "?" + urlencode(query, quote_via=quote, safe="")
        began = self.clock.monotonic()
        deadline = began + (self.timeout if timeout is None else timeout) + wait
        operation_deadline = None
        if operation_timeout is not None:
            operation_deadline = began + operation_timeout
            deadline = min(deadline, operation_deadline)
        fixed = [*headers, *{**self._headers, **(user_headers or {})}.items()]

        async def send(left: float) -> SentResponse:
            limit = min(left, self.request_timeout + wait)
            timeouts = [(REQUEST_TIMEOUT, _duration(_promised(limit)))]
            if operation_deadline is not None:
                remaining = operation_deadline - self.clock.monotonic()
                timeouts.append((OPERATION_TIMEOUT, _duration(remaining)))
            sent = [(FAILURE_SUPPORT, "true"), *timeouts, *fixed]
            return await exchange(self._http, method, url, sent, body, timeout=limit)

        return await send_with_retries(
            send, judge, deadline=deadline, policy=self._retry, clock=self.clock
        )

    async def serialize(self, value: Any) -> Content:
        """Write an input as a body with its headers."""
        content = self._serializer.serialize(value)
        return await content if inspect.isawaitable(content) else content

    async def deserialize(self, content: Content, output_type: Any) -> Any:
        """Read a result as a value of the type; None or Any leaves it as plain JSON.

        Raises:
            MalformedResponse: the result is not what the operation's definition says.
        """
        try:
            value = self._serializer.deserialize(content, output_type)
            return await value if inspect.isawaitable(value) else value
        except InvalidWireValue as error:
            raise MalformedResponse(f"the result cannot be read: {error}") from error

    async def aclose(self) -> None:
        """Close the connections that are held."""
        await self._http.aclose()

    def __repr__(self) -> str:
        """Show the address alone: headers hold keys."""
        return f"<Endpoint {self.base_url}>"


def content_of(response: SentResponse) -> Content:
    """Return the body of an answer as the content to read a result from."""
    return Content(headers=content_headers(response.headers), data=response.body)


def as_seconds(duration: Seconds) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is negative or not a number.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not seconds >= 0:
        raise ValueError(f"a duration cannot be {duration!r}")
    return seconds


def _promised(limit: float) -> float:
    """Tell the peer a little less than our patience, so that its own timeout error arrives."""
    return limit - min(0.5, limit / 10)


def _duration(seconds: float) -> str:
    # A zero would mean that we wait without limit.
    return format_duration(timedelta(seconds=max(seconds, 0.001)))


def check_base_url(base_url: str) -> None:
    """Check that a URL can be an endpoint's: what comes before `/{service}/{operation}`.

    Raises:
        ValueError: it is not, with the reason; a password in it is not repeated.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"an endpoint is an http or https URL, not {base_url[:100]!r}")
    if "@" in parts.netloc:
        # Not echoed: it holds a password.
        raise ValueError("an endpoint's URL holds no user or password: pass api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError(f"an endpoint's URL has no query and no fragment: {base_url[:100]!r}")
