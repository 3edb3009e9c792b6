"""Other endpoints, answered by functions of the test."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from nexusrpc import Content, HandlerError, HandlerErrorType, OperationError

from handlers.outgoing_calls import RemoteEndpoint
from nexus_spec import (
    PayloadSerializer,
    failure_of_error,
    failure_to_bytes,
    parse_operation_path,
    status_of,
)
from nexus_spec.headers import OPERATION_STATE, REQUEST_ID

Answers = Mapping[str, Mapping[str, Callable[[Any], Any]]]
"""By endpoint and operation (`book`, or `shipping/book` where services share a name): what it
answers to an input. The function may be `async`; an `OperationError` that it raises is the outcome,
a `HandlerError` the answer to the start."""

_HOST = "http://{}.invalid"


class FakeEndpoints(httpx.AsyncBaseTransport):
    """Answers calls in place of the network: each one once, whatever is sent again.

    Args:
        answers: What answers.
        serializer: Reads inputs and writes results.
    """

    def __init__(self, answers: Answers, serializer: PayloadSerializer) -> None:
        self._answers = answers
        self._serializer = serializer
        self._answered: dict[str, tuple[int, dict[str, str], bytes]] = {}

    @property
    def endpoints(self) -> dict[str, RemoteEndpoint]:
        """The endpoints as the settings would have them."""
        return {
            name: RemoteEndpoint(url=_HOST.format(number), callbacks=False)
            for number, name in enumerate(self._answers)
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a start; the other side remembers it by its request id."""
        address = parse_operation_path(request.url.raw_path.partition(b"?")[0])
        if request.method != "POST" or address.action != "operation":
            # It has ended at its start: there is nothing to wait for, or to cancel.
            error = HandlerError("no such operation", type=HandlerErrorType.NOT_FOUND)
            return _response(self._refused(error))
        body = await request.aread()
        request_id = request.headers[REQUEST_ID]
        if request_id not in self._answered:
            content = Content(headers=dict(request.headers), data=body)
            answer = self._find(request.url.host, address.service, address.operation)
            self._answered[request_id] = await self._answer(answer, content)
        return _response(self._answered[request_id])

    def _find(self, host: str, service: str, operation: str) -> Callable[[Any], Any]:
        for number, (endpoint, answers) in enumerate(self._answers.items()):
            if httpx.URL(_HOST.format(number)).host == host:
                found = answers.get(f"{service}/{operation}") or answers.get(operation)
                if found is not None:
                    return found
                known = ", ".join(answers) or "nothing"
                message = f"calls[{endpoint!r}] has no {operation!r}, it has {known}"

                def refuse(_: Any, message: str = message) -> None:
                    raise HandlerError(message, type=HandlerErrorType.NOT_FOUND)

                return refuse
        raise httpx.ConnectError(f"nothing answers at {host}")

    async def _answer(
        self, answer: Callable[[Any], Any | Awaitable[Any]], content: Content
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            result = answer(self._serializer.decode(content))
            if inspect.isawaitable(result):
                result = await result
        except OperationError as error:
            headers = {OPERATION_STATE: error.state.value, "content-type": "application/json"}
            return 424, headers, failure_to_bytes(failure_of_error(error))
        except HandlerError as error:
            return self._refused(error)
        written = self._serializer.serialize(result)
        return 200, dict(written.headers), written.data

    def _refused(self, error: HandlerError) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": "application/json"}
        return status_of(error.type), headers, failure_to_bytes(failure_of_error(error))


def _response(answered: tuple[int, dict[str, str], bytes]) -> httpx.Response:
    status, headers, body = answered
    return httpx.Response(status, headers=headers, content=body)
