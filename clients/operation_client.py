"""The client: start operations of a Nexus endpoint, and hold on to them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import httpx
from nexusrpc import HandlerError, Link, Operation, Serializer

from clients.completion_receiver import CompletionReceiver
from clients.endpoint import Endpoint, Seconds, as_seconds, content_of
from clients.errors import ClientError
from clients.expected_completions import ExpectedCompletion
from clients.operation_handle import OperationHandle
from clients.request_headers import merge_user_headers
from clients.retry import Clock, RetryPolicy
from clients.service_names import ServiceNames, service_name
from clients.start import StartOptions, judge_start, links_of, start_headers
from nexus_spec import is_header_value, parse_operation_info

__all__ = ["NexusClient"]

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

# What `execute` asks a server to hold a start open for, before it polls.
_EXECUTE_WAIT_SECONDS = 20.0


class NexusClient:
    """Calls the operations of one Nexus endpoint, this project's or any other's.

    ```python
    async with NexusClient("http://127.0.0.1:8080/services") as nexus:
        handle = await nexus.start(Orders.place, OrderIn(...))
        receipt = await handle.result()
    ```

    - `base_url`: the endpoint, the part before `/{service}/{operation}`.
    - `api_key`: sent as bearer token with every request; in no log and no representation.
    - `headers`: sent with every request; those of a single call come before them.
    - `timeout`: seconds for one call, its retries included.
    - `request_timeout`: seconds for one HTTP request, told to the server as `Request-Timeout`.
      Raise it for operations that answer inline and take longer.
    - `retry`: how soon to repeat what the protocol allows to repeat, under the same request id.
    - `callback_receiver`: a `CompletionReceiver` with a public URL: each start then asks for a
      callback to it, and results are awaited there. Without one results are asked for by long
      polling, an extension that a Temporal server, for one, lacks.
    - `serializer`: how inputs and results are written; JSON through pydantic by default.
    - `transport`: an httpx transport to use instead of sockets.
    - `clock`: the time and the chance of the retries.

    Spec: SPEC.md#endpoint-descriptions
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Seconds = 30.0,
        request_timeout: Seconds = 10.0,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        callback_receiver: CompletionReceiver | None = None,
        serializer: Serializer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._endpoint = Endpoint(
            base_url,
            headers={**_bearer(api_key), **merge_user_headers(headers)},
            timeout=as_seconds(timeout),
            request_timeout=as_seconds(request_timeout),
            retry=retry or RetryPolicy(),
            transport=transport,
            serializer=serializer,
            clock=clock or Clock(),
        )
        self._receiver = callback_receiver
        self._services = ServiceNames()

    @overload
    async def start(
        self, op: Operation[InputT, OutputT], input: InputT, **options: Unpack[StartOptions]
    ) -> OperationHandle[OutputT]: ...
    @overload
    async def start(
        self, op: tuple[str, str], input: Any = None, **options: Unpack[StartOptions]
    ) -> OperationHandle[Any]: ...
    async def start(
        self,
        op: Operation[Any, Any] | tuple[str, str],
        input: Any = None,
        *,
        service: type | str | None = None,
        request_id: str | None = None,
        operation_timeout: Seconds | None = None,
        wait: Seconds | None = None,
        callback: str | None = None,
        callback_headers: Mapping[str, str] | None = None,
        links: Sequence[Link] = (),
        headers: Mapping[str, str] | None = None,
    ) -> OperationHandle[Any]:
        """Start an operation and return a handle to it, as soon as the server has accepted it.

        `op` is an attribute of a class decorated with `@nexusrpc.service` (`Orders.place`), or the
        names `(service, operation)`. The service of an attribute is found by the object itself;
        `service` (the class, or its name) is needed only where that does not decide: an operation
        that is inherited under several service names, or an `Operation` outside of any service.

        - `request_id`: the idempotency key, a new UUID by default. A start repeated under the same
          one is answered with the same operation.
        - `operation_timeout`: seconds from now within which the operation must end.
        - `wait`: seconds that the server may take to answer with the result instead of a token, an
          extension of the protocol that other servers ignore.
        - `callback`, `callback_headers`: where the completion goes, and the headers it shall carry;
          they take the place of the client's callback receiver.
        - `links`: links to the caller's own resources.
        - `headers`: further headers for the handler.

        Raises:
            OperationError: the operation has ended at once, failed or canceled.
            HandlerError: the request failed, for good or until the time was over.
            ServiceUnresolved: `op` does not tell its service.
            Unreachable, UnknownOutcome: the server did not answer. After the latter the operation
                may run: repeat the start under the same request id.
            MalformedResponse: the server's answer is outside of the protocol.
            ValueError: an argument cannot be sent.

        Spec: SPEC.md#start-operation
        """
        target = self._services.target_of(op, service)
        content = await self._endpoint.serialize(input)
        expected = self._expect(callback)
        callback_url = expected.url if expected is not None else callback
        request_id = str(uuid.uuid4()) if request_id is None else request_id
        wait_seconds = 0.0 if wait is None else as_seconds(wait)
        sent_headers = start_headers(
            request_id=request_id,
            content=content,
            callback_headers=callback_headers,
            links=links,
            wait=wait_seconds,
        )
        try:
            response = await self._endpoint.call(
                "POST",
                target.service,
                target.operation,
                judge=judge_start,
                headers=sent_headers,
                user_headers=merge_user_headers(headers),
                query={"callback": callback_url} if callback_url is not None else None,
                body=content.data,
                operation_timeout=None
                if operation_timeout is None
                else as_seconds(operation_timeout),
                wait=wait_seconds,
            )
        except (ClientError, HandlerError):
            if expected is None or expected.completion is None:
                raise
            # The answer was lost, and yet the operation has run: its completion overtook it.
            return OperationHandle(
                self._endpoint,
                target.service,
                target.operation,
                token=expected.completion.token or None,
                output_type=target.output_type,
                links=expected.completion.links,
                request_id=request_id,
                expected=expected,
            )
        inline = response.status == 200
        return OperationHandle(
            self._endpoint,
            target.service,
            target.operation,
            token=None if inline else parse_operation_info(response.body).token,
            output_type=target.output_type,
            links=links_of(response),
            request_id=request_id,
            content=content_of(response) if inline else None,
            expected=None if inline else expected,
        )

    @overload
    async def execute(
        self,
        op: Operation[InputT, OutputT],
        input: InputT,
        *,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> OutputT: ...
    @overload
    async def execute(
        self,
        op: tuple[str, str],
        input: Any = None,
        *,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> Any: ...
    async def execute(
        self,
        op: Any,
        input: Any = None,
        *,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> Any:
        """Start an operation, wait until it has ended, and return its result.

        `timeout` is how long the operation may take, None for ever; the time of the HTTP requests
        comes on top. The other arguments are those of `start`.

        Raises:
            OperationError: the operation failed or was canceled.
            StillRunning: it has not ended within `timeout`; it runs on.
            HandlerError, ClientError: as `start` and `OperationHandle.result`.
        """
        clock = self._endpoint.clock
        deadline = None if timeout is None else clock.monotonic() + as_seconds(timeout)
        awaits_callback = self._receiver is not None and options.get("callback") is None
        if options.get("wait") is None and not awaits_callback:
            within = math.inf if timeout is None else as_seconds(timeout)
            options["wait"] = min(within, _EXECUTE_WAIT_SECONDS)
        handle = await self.start(op, input, **options)
        left = None if deadline is None else max(deadline - clock.monotonic(), 0.0)
        return await handle.result(left)

    @overload
    def handle(
        self, service: type | str, operation: Operation[Any, OutputT], token: str
    ) -> OperationHandle[OutputT]: ...
    @overload
    def handle(self, service: type | str, operation: str, token: str) -> OperationHandle[Any]: ...
    def handle(
        self, service: type | str, operation: Operation[Any, Any] | str, token: str
    ) -> OperationHandle[Any]:
        """Return a handle to an operation that was started before, without asking the server.

        Its result is asked for by long polling, also where the client has a callback receiver: the
        callback URL was that of the start.

        Raises:
            InvalidWireValue: no token can look like this.
            ServiceUnresolved: the class is no service.
        """
        name, output_type = (
            (operation, None)
            if isinstance(operation, str)
            else (operation.name, operation.output_type)
        )
        return OperationHandle(
            self._endpoint,
            service_name(service),
            name,
            token=token,
            output_type=output_type,
        )

    async def aclose(self) -> None:
        """Close the connections that are held; handles cannot be used any more."""
        await self._endpoint.aclose()

    async def __aenter__(self) -> Self:
        """Return the client, closed when the block ends."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections that are held."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show the address alone: the rest may be secret."""
        return f"<NexusClient {self._endpoint.base_url}>"

    def _expect(self, callback: str | None) -> ExpectedCompletion | None:
        if callback is not None or self._receiver is None:
            return None
        return self._receiver.expect()


def _bearer(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not is_header_value(api_key):
        raise ValueError("api_key holds characters that a header cannot carry, or none at all")
    return {"authorization": f"Bearer {api_key}"}
