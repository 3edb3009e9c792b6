"""Calls to the operations of other Nexus endpoints: one request at a time, nothing stored.

What is to be repeated, and when, is decided where the journal is; here one request is sent and its
answer told apart: an outcome, a refusal for good, or nothing yet.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import httpx
from nexusrpc import Content, HandlerError, Link, OperationError

from callbacks.signing_keys import SigningKeys
from clients.callback_tokens import OutgoingCall, sign_call
from clients.endpoint import Endpoint, content_of
from clients.errors import ClientError, NotSupported
from clients.operation_handle import judge_cancel, judge_result
from clients.request_headers import merge_user_headers
from clients.retry import Clock, RetryPolicy, retry_after_seconds
from clients.sender import SentResponse
from clients.start import judge_start, links_of, start_headers
from nexus_spec import (
    Completion,
    NexusError,
    OperationState,
    failure_of_error,
    format_duration,
    is_retryable,
    parse_operation_info,
)
from nexus_spec.headers import OPERATION_TOKEN

CALLBACK_PATH = "/nexus/callback"
CALLBACK_TOKEN_HEADER = "token"  # noqa: S105  # a header's name
"""The header in which a completion brings its call's token back.

It is sent as `Nexus-Callback-Token`, whose prefix the other side strips.
"""

_REQUEST_SECONDS = 10.0
_AT_A_TIME = 64


class CallNotMade(NexusError):
    """A call cannot be made as it is; never raised itself."""


class UnknownEndpoint(CallNotMade):
    """The settings have no such endpoint; the message says what to add."""


class CallRefused(CallNotMade):
    """The other side refused a request, and would refuse it again.

    Attributes:
        type_name: The type of its error, such as `BAD_REQUEST`.
        message: The text of its error.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message


class CallNotAnswered(CallNotMade):
    """There is no answer that counts; the same request may be sent again.

    Attributes:
        retry_after_seconds: How long the other side wants to be left alone at least.
    """

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CannotBeAsked(CallNotMade):
    """The other side does not tell results: that is an extension of the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEndpoint:
    """A Nexus endpoint that is served elsewhere.

    Attributes:
        url: The part before `/{service}/{operation}`.
        api_key: Sent as bearer token.
        callbacks: Whether it may call back; else its results are asked for.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    callbacks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOperation:
    """An operation of another endpoint."""

    endpoint: str
    service: str
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStart:
    """A start as it is sent, each time the same but for the time that is left.

    Attributes:
        target: What is started.
        call: Which call it is, for the callback token.
        request_id: The idempotency key.
        content: The input.
        timeout_seconds: How long the operation may still take; None without limit.
        headers: The handler's own headers.
        links: Links to the caller's resources.
        traceparent: The trace that goes on there.
    """

    target: RemoteOperation
    call: OutgoingCall
    request_id: str
    content: Content
    timeout_seconds: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    links: Sequence[Link] = ()
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The other side has accepted a start and goes on by itself."""

    token: str
    links: tuple[Link, ...]


class OutgoingCalls:
    """Sends starts, questions and cancels to the endpoints of the settings.

    Args:
        endpoints: The endpoints by name.
        keys: Sign the callback tokens.
        public_url: Under which address this gateway can be called back, if at all.
        transport: An httpx transport to use instead of sockets.
    """

    def __init__(
        self,
        endpoints: Mapping[str, RemoteEndpoint],
        keys: SigningKeys,
        *,
        public_url: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._endpoints = dict(endpoints)
        self._keys = keys
        self._public_url = public_url
        self._transport = transport
        self._opened: dict[str, Endpoint] = {}
        # A thousand operations that are due at once must not open a thousand connections.
        self._sending = asyncio.Semaphore(_AT_A_TIME)
        self._waiting = 0

    def check(self, endpoint: str) -> None:
        """Check that an endpoint can be called.

        Raises:
            UnknownEndpoint: The settings do not have it.
        """
        if endpoint not in self._endpoints:
            known = ", ".join(sorted(self._endpoints)) or "none"
            raise UnknownEndpoint(
                f"the settings have no endpoint {endpoint!r} with a url to call (there are: "
                f"{known}); add endpoints.{endpoint}.url, restart, and resume the operation"
            )

    def is_called_back(self, endpoint: str) -> bool:
        """Whether completions of this endpoint's operations come to this gateway by themselves."""
        return self._public_url is not None and self._endpoints[endpoint].callbacks

    async def start(self, start: CallStart) -> CallStarted | Completion:
        """Send a start; the outcome comes back where the operation has ended already.

        Raises:
            CallRefused: The start was refused for good.
            CallNotAnswered: It is to be sent again, under the same request id.
            UnknownEndpoint: The settings do not have the endpoint (any more).
            ValueError: Something of it cannot be sent; no retry mends that.

        Spec: SPEC.md#start-operation
        """
        name = start.target.endpoint
        self.check(name)
        callback = None
        callback_headers = {}
        if self.is_called_back(name):
            callback = f"{self._public_url}{CALLBACK_PATH}"
            token = sign_call(start.call, await self._keys.signing())
            callback_headers[CALLBACK_TOKEN_HEADER] = token
        user_headers = merge_user_headers(start.headers)
        if start.traceparent is not None:
            user_headers.setdefault("traceparent", start.traceparent)
        headers = start_headers(
            request_id=start.request_id,
            content=start.content,
            callback_headers=callback_headers,
            links=start.links,
            wait=0.0,
        )
        response = await self._send(
            "POST",
            start.target,
            headers=headers,
            user_headers=user_headers,
            query={"callback": callback} if callback is not None else None,
            body=start.content.data,
            operation_timeout=start.timeout_seconds,
        )
        if (outcome := _outcome(judge_start(response), response)) is not None:
            return outcome
        if response.status == 200:
            return _succeeded(response)
        return CallStarted(parse_operation_info(response.body).token, links_of(response))

    async def ask(
        self, target: RemoteOperation, token: str, wait_seconds: float = 0.0
    ) -> Completion | None:
        """Ask how an operation ended; None while it runs.

        Args:
            target: The operation.
            token: Its token.
            wait_seconds: How long the other side may wait for the end before it answers.

        Raises:
            CallRefused: It does not know the token (any more), or refuses to tell for good.
            CannotBeAsked: It does not answer such questions at all.
            CallNotAnswered: There was no answer.
            UnknownEndpoint: The settings do not have the endpoint (any more).
        """
        if self._waiting >= _AT_A_TIME:
            wait_seconds = 0.0
        waits = wait_seconds > 0
        self._waiting += waits
        try:
            response = await self._send(
                "GET",
                target,
                "result",
                headers=[(OPERATION_TOKEN, token)],
                query={"wait": format_duration(timedelta(seconds=wait_seconds))} if waits else None,
                wait=wait_seconds,
            )
        finally:
            self._waiting -= waits
        if (outcome := _outcome(judge_result(response), response)) is not None:
            return outcome
        return _succeeded(response) if response.status == 200 else None

    async def cancel(self, target: RemoteOperation, token: str) -> None:
        """Ask the other side to cancel an operation; it may still end in any state.

        Raises:
            CallRefused: It will not, whatever the reason.
            CallNotAnswered: There was no answer; the request may be sent again.
            UnknownEndpoint: The settings do not have the endpoint (any more).

        Spec: SPEC.md#cancel-operation
        """
        response = await self._send("POST", target, "cancel", headers=[(OPERATION_TOKEN, token)])
        _outcome(judge_cancel(response), response)

    async def aclose(self) -> None:
        """Close all connections."""
        opened = list(self._opened.values())
        self._opened.clear()
        for endpoint in opened:
            await endpoint.aclose()

    async def _send(
        self,
        method: str,
        target: RemoteOperation,
        action: str = "operation",
        *,
        headers: Sequence[tuple[str, str]],
        user_headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        operation_timeout: float | None = None,
        wait: float = 0.0,
    ) -> SentResponse:
        endpoint = self._open(target.endpoint)
        async with nullcontext() if wait else self._sending:
            try:
                return await endpoint.call(
                    method,
                    target.service,
                    target.operation,
                    action,
                    # Every answer comes back: its headers say when to ask again.
                    judge=lambda _: None,
                    headers=headers,
                    user_headers=user_headers,
                    query=query,
                    body=body,
                    operation_timeout=operation_timeout,
                    wait=wait,
                )
            except ClientError as error:
                raise CallNotAnswered(str(error)) from error

    def _open(self, name: str) -> Endpoint:
        if (opened := self._opened.get(name)) is not None:
            return opened
        self.check(name)
        remote = self._endpoints[name]
        bearer = {"authorization": f"Bearer {remote.api_key}"} if remote.api_key else {}
        opened = self._opened[name] = Endpoint(
            remote.url,
            headers=bearer,
            timeout=_REQUEST_SECONDS,
            request_timeout=_REQUEST_SECONDS,
            retry=RetryPolicy(max_attempts=1),
            transport=self._transport,
            serializer=None,
            clock=Clock(),
        )
        return opened


def _outcome(error: Exception | None, response: SentResponse) -> Completion | None:
    """Return the failed or canceled outcome that an answer is; None for one that is no error."""
    match error:
        case None:
            return None
        case OperationError():
            return Completion(
                state=OperationState(error.state.value),
                token="",
                start_time=None,
                close_time=None,
                failure=failure_of_error(error),
            )
        case NotSupported():
            raise CannotBeAsked(str(error)) from error
        case HandlerError() if not is_retryable(error):
            raise CallRefused(error.raw_error_type, error.message) from error
        case _:
            clock = Clock()
            after = retry_after_seconds(response.headers, clock.utcnow()) or 0.0
            message = f"{error.raw_error_type}: {error}" if isinstance(error, HandlerError) else ""
            raise CallNotAnswered(message or str(error), after) from error


def _succeeded(response: SentResponse) -> Completion:
    return Completion(
        state=OperationState.SUCCEEDED,
        token="",
        start_time=None,
        close_time=None,
        links=links_of(response),
        content=content_of(response),
    )
