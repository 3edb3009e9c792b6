"""Delivering the completion of an operation to the caller's callback URL."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from clients.error_decoding import error_of_response
from clients.sender import HttpxSender, Sender, SentResponse
from nexus_spec import Completion, render_completion

__all__ = ["CompletionClient"]


class CompletionClient:
    """Posts completions to callback URLs, once each: when to try again is for its user to decide.

    Without a `sender` it makes an `HttpxSender`, which calls any address.
    """

    def __init__(self, sender: Sender | None = None) -> None:
        self._sender = sender if sender is not None else HttpxSender()

    async def complete(
        self,
        url: str,
        completion: Completion,
        *,
        headers: Sequence[tuple[str, str]] = (),
        timeout: float = 10.0,
    ) -> SentResponse:
        """Post a completion and return the answer, whose status is 2xx.

        `headers` are the callback headers of the start, their prefix stripped; where a name is
        also one of the completion's own, the completion's counts. `timeout` bounds the whole
        exchange, in seconds.

        Raises:
            HandlerError: the receiver refused it; `retryable_override` and type tell whether to
                try again.
            MalformedResponse: the answer is no answer of the protocol, say a redirect.
            Unreachable: nothing was sent.
            UnknownOutcome: the receiver may have taken it. After this a 404 probably means that it
                has.

        Spec: SPEC.md#callback-urls
        """
        own, body = render_completion(completion)
        taken = {name.lower() for name, _ in own}
        extra = [(name, value) for name, value in headers if name.lower() not in taken]
        response = await self._sender.post(url, [*own, *extra], body, timeout=timeout)
        error = error_of_response(response)
        if error is not None:
            raise error
        return response

    async def aclose(self) -> None:
        """Close the sender."""
        await self._sender.aclose()

    async def __aenter__(self) -> Self:
        """Return the client, closed when the block ends."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sender."""
        await self.aclose()
