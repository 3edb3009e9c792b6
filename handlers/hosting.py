"""Calling nexusrpc handlers: contexts, middleware, threads, and errors that fit the protocol."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nexusrpc import Content, HandlerError, HandlerErrorType, Link
from nexusrpc._util import is_async_callable
from nexusrpc.handler import (
    CancelOperationContext,
    MiddlewareSafeOperationHandler,
    OperationHandler,
    OperationHandlerMiddleware,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
)

from handlers.inline import HandlerThreads, TaskCancellation, run_within_request
from handlers.requests import OperationKey, StartRequest
from handlers.services import HostedOperation
from nexus_spec import InvalidWireValue, PayloadSerializer

StartResult = StartOperationResultSync[Any] | StartOperationResultAsync


class Hosting:
    """Runs handlers on behalf of requests.

    Args:
        serializer: Reads inputs.
        threads: For `def` handlers.
        middleware: Wraps every handler, the first outermost.
    """

    def __init__(
        self,
        serializer: PayloadSerializer,
        threads: HandlerThreads,
        middleware: Sequence[OperationHandlerMiddleware],
    ) -> None:
        self._serializer = serializer
        self._threads = threads
        self._middleware = tuple(reversed(middleware))

    def read_input(self, hosted: HostedOperation, request: StartRequest) -> Any:
        """Read the input of a start.

        Raises:
            HandlerError: BAD_REQUEST; the body is not what the operation takes.
        """
        try:
            return self._serializer.decode(
                Content(headers=request.content_headers, data=request.body), hosted.input_type
            )
        except InvalidWireValue as error:
            raise HandlerError(str(error), type=HandlerErrorType.BAD_REQUEST) from None

    async def start(
        self, hosted: HostedOperation, request: StartRequest, value: Any
    ) -> tuple[StartResult, list[Link]]:
        """Call a handler's `start`; return what it answers and the links that it added.

        Raises:
            HandlerError: The handler's own, or REQUEST_TIMEOUT, or UNAVAILABLE when every
                handler thread is busy.
            OperationError: The handler's own.
            ClientDisconnected: The caller hung up.
        """
        cancellation = TaskCancellation()
        timeout = request.request_timeout_seconds
        callback = request.callback
        ctx = StartOperationContext(
            service=hosted.service,
            operation=hosted.operation,
            headers=request.headers,
            task_cancellation=cancellation,
            request_deadline=None
            if timeout is None
            else datetime.now(UTC) + timedelta(seconds=timeout),
            request_id=request.request_id,
            callback_url=callback.url if callback is not None else None,
            callback_headers=dict(callback.headers) if callback is not None else {},
            inbound_links=list(request.links),
        )
        answer = await run_within_request(
            self._wrapped(ctx, hosted.handler).start(ctx, value),
            cancellation,
            timeout,
            request.disconnected,
        )
        if not isinstance(answer, StartOperationResultSync | StartOperationResultAsync):
            raise TypeError(
                f"the handler of {hosted.service}/{hosted.operation} returned "
                f"{type(answer).__name__}, not a StartOperationResult"
            )
        return answer, ctx.outbound_links

    async def cancel(
        self,
        hosted: HostedOperation,
        key: OperationKey,
        handler_token: str,
        headers: dict[str, str],
        request_timeout_seconds: float | None,
    ) -> None:
        """Call a handler's `cancel`.

        Raises:
            HandlerError: The handler's own, or NOT_IMPLEMENTED where it cannot cancel.
        """
        cancellation = TaskCancellation()
        ctx = CancelOperationContext(
            service=key.service,
            operation=key.operation,
            headers=headers,
            task_cancellation=cancellation,
        )
        try:
            await run_within_request(
                self._wrapped(ctx, hosted.handler).cancel(ctx, handler_token),
                cancellation,
                request_timeout_seconds,
                None,
            )
        except NotImplementedError as error:
            raise HandlerError(
                "this operation cannot be canceled", type=HandlerErrorType.NOT_IMPLEMENTED
            ) from error

    def _wrapped(
        self,
        ctx: StartOperationContext | CancelOperationContext,
        handler: OperationHandler[Any, Any],
    ) -> MiddlewareSafeOperationHandler:
        wrapped: MiddlewareSafeOperationHandler = _Awaitable(handler, self._threads)
        for middleware in self._middleware:
            wrapped = middleware.intercept(ctx, wrapped)
        return wrapped


class _Awaitable(MiddlewareSafeOperationHandler):
    """Runs a handler's methods so that neither `start` nor `cancel` blocks the event loop."""

    def __init__(self, handler: OperationHandler[Any, Any], threads: HandlerThreads) -> None:
        self._handler = handler
        self._threads = threads

    async def start(self, ctx: StartOperationContext, input: Any) -> StartResult:
        if is_async_callable(self._handler.start):
            answer: StartResult = await self._handler.start(ctx, input)
            return answer
        return await self._threads.run(
            self._handler.start,  # type: ignore[arg-type]  # a plain function, whatever its type says
            ctx,
            input,
        )

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if is_async_callable(self._handler.cancel):
            await self._handler.cancel(ctx, token)
        else:
            await self._threads.run(self._handler.cancel, ctx, token)
