"""A started operation as its caller holds it: wait for it, look at it, cancel it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

from nexusrpc import Content, HandlerError, Link

from clients.endpoint import Endpoint, Seconds, as_seconds, content_of
from clients.error_decoding import error_of_response, has_failure
from clients.errors import MalformedResponse, NotSupported, StillRunning
from clients.expected_completions import ExpectedCompletion
from clients.sender import SentResponse
from nexus_spec import (
    Completion,
    InvalidWireValue,
    OperationInfo,
    OperationState,
    check_token,
    format_duration,
    parse_operation_info,
)
from nexus_spec.headers import OPERATION_TOKEN

__all__ = ["OperationHandle", "judge_cancel", "judge_result"]

OutputT = TypeVar("OutputT")

# Proxies and load balancers tend to cut requests that are silent for a minute.
_MAX_POLL_SECONDS = 45.0
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0


class OperationHandle(Generic[OutputT]):
    """An operation that was started.

    `token` names it on its server; it is None where the result came at once, and kept out of the
    representation, as it is all that is needed to cancel the operation. `links` are the server's
    links to its own resources. `request_id` is that of the start; None on a handle made of a token.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        service: str,
        operation: str,
        *,
        token: str | None,
        output_type: Any = None,
        links: tuple[Link, ...] = (),
        request_id: str | None = None,
        content: Content | None = None,
        expected: ExpectedCompletion | None = None,
    ) -> None:
        if token is not None:
            check_token(token)
        elif content is None and expected is None:
            raise ValueError("an operation that runs on has a token")
        self.service = service
        self.operation = operation
        self.token = token
        self.links = links
        self.request_id = request_id
        self._endpoint = endpoint
        self._output_type = output_type
        self._content = content
        self._expected = expected

    async def result(self, timeout: Seconds | None = None) -> OutputT:
        """Wait for the operation to end and return its result; may be called again.

        The result comes by the completion where the client has a callback receiver, and else by
        long polling, an extension of the protocol. `timeout` is how long the operation may take
        from now, None for ever; the time of the HTTP requests comes on top. Short failures of the
        server are bridged by the client's retries; after a longer one, ask again.

        Raises:
            OperationError: the operation failed or was canceled.
            StillRunning: it has not ended within `timeout`; it runs on.
            HandlerError: NOT_FOUND where the server does not know the token (any more), or another
                error of the request.
            NotSupported: the server cannot be asked for results: use a callback receiver.
            MalformedResponse: the result does not fit the operation's output type.
            Unreachable, UnknownOutcome: the server could not be asked.
        """
        seconds = None if timeout is None else as_seconds(timeout)
        if self._content is not None:
            content = self._content
        elif self._expected is not None:
            content = await self._by_completion(self._expected, seconds)
        else:
            content = await self._by_polling(self.token or "", seconds)
        return cast(OutputT, await self._endpoint.deserialize(content, self._output_type))

    async def info(self) -> OperationInfo:
        """Ask for the state of the operation, an extension of the protocol.

        Where the result came at once the answer is known, and the token is empty.

        Raises:
            HandlerError: NOT_FOUND where the server does not know the token (any more).
            NotSupported: the server cannot be asked for states.
            Unreachable, UnknownOutcome, MalformedResponse: as for any call.
        """
        if self.token is None:
            ended = self._expected.completion if self._expected is not None else None
            state = OperationState.SUCCEEDED if ended is None else ended.state
            return OperationInfo(token="", state=state)
        response = await self._endpoint.call(
            "GET",
            self.service,
            self.operation,
            judge=lambda response: _judge_question(response, "the state of an operation"),
            headers=[(OPERATION_TOKEN, self.token)],
        )
        try:
            return parse_operation_info(response.body)
        except InvalidWireValue as error:
            raise MalformedResponse(str(error), status=response.status) from error

    async def cancel(self) -> None:
        """Ask the server to cancel the operation; it may still end in any state.

        Repeating it, or asking after the end, succeeds. Where the result came at once there is
        nothing to cancel, and nothing is sent.

        Raises:
            HandlerError: NOT_FOUND for an unknown token, NOT_IMPLEMENTED for an operation that
                cannot be canceled, or another error of the request.
            Unreachable, UnknownOutcome, MalformedResponse: as for any call.

        Spec: SPEC.md#cancel-operation
        """
        if self.token is None:
            return
        await self._endpoint.call(
            "POST",
            self.service,
            self.operation,
            "cancel",
            judge=judge_cancel,
            headers=[(OPERATION_TOKEN, self.token)],
        )

    def __repr__(self) -> str:
        """Show which operation it is, not its token."""
        return f"<OperationHandle {self.service}/{self.operation}>"

    async def _by_completion(self, expected: ExpectedCompletion, timeout: float | None) -> Content:
        try:
            completion = await expected.wait(timeout)
        except TimeoutError:
            raise self._still_running(timeout) from None
        return _content_of_completion(completion)

    async def _by_polling(self, token: str, timeout: float | None) -> Content:
        clock = self._endpoint.clock
        deadline = math.inf if timeout is None else clock.monotonic() + timeout
        pause = _FIRST_PAUSE_SECONDS
        while True:
            asked_at = clock.monotonic()
            wait = min(max(deadline - asked_at, 0.0), _MAX_POLL_SECONDS)
            response = await self._ask_for_result(token, wait)
            if response.status == 200:
                return content_of(response)
            now = clock.monotonic()
            if now >= deadline:
                raise self._still_running(timeout)
            if now - asked_at >= wait / 2:
                pause = _FIRST_PAUSE_SECONDS
                continue
            # A server that answers at once instead of waiting must not be asked in a tight loop.
            await clock.sleep(min(pause, deadline - now))
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def _ask_for_result(self, token: str, wait: float) -> SentResponse:
        asked = format_duration(timedelta(seconds=wait))
        return await self._endpoint.call(
            "GET",
            self.service,
            self.operation,
            "result",
            judge=judge_result,
            headers=[(OPERATION_TOKEN, token)],
            query={"wait": asked} if wait else None,
            wait=wait,
        )

    def _still_running(self, timeout: float | None) -> StillRunning:
        return StillRunning(
            f"{self.service}/{self.operation} has not ended within {timeout:g} s",
            token=self.token,
        )


def _content_of_completion(completion: Completion) -> Content:
    if completion.state is not OperationState.SUCCEEDED:
        raise completion.error()
    return completion.content or Content(headers={}, data=b"")


def judge_result(response: SentResponse) -> Exception | None:
    """Accept a result, and the answers that mean that the operation still runs: 408 and 412."""
    # 412: still running. 408: the server gave up waiting; ask again.
    if response.status in {408, 412}:
        return None
    return _judge_question(response, "results")


def _judge_question(response: SentResponse, what: str) -> Exception | None:
    """Accept 200; tell a server without the extension from one that refuses this token."""
    if response.status == 200:
        return None
    error = error_of_response(response)
    unknown_route = (
        error is None
        # Wrong method or shape, as servers of the protocol alone answer; ours never does here.
        or response.status in {400, 405, 501}
        or (response.status == 404 and not has_failure(response))
    )
    if not unknown_route:
        return error
    reason = f"{error.message}" if isinstance(error, HandlerError) else f"status {response.status}"
    missing = NotSupported(
        f"this server cannot be asked for {what} ({reason}): that is an extension of the protocol."
        " Give NexusClient a callback_receiver to get results from it"
    )
    missing.__cause__ = error
    return missing


def judge_cancel(response: SentResponse) -> Exception | None:
    """Accept 202 alone.

    Spec: SPEC.md#cancel-operation
    """
    if response.status == 202:
        return None
    return error_of_response(response) or MalformedResponse(
        f"a cancel is answered 202, not {response.status}", status=response.status
    )
