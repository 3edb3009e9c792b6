"""The end of an operation: the same for a result, an error, a deadline and an operator."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from nexusrpc import Content, Link, OperationError, OperationErrorState

from callbacks.database import Writer, persist
from callbacks.outbox import Delivery, RenderedCompletion, Terms
from handlers.clock import Clock
from handlers.live_operation import links_from_json
from handlers.records import State
from handlers.requests import Succeeded
from handlers.stats import EngineStats
from handlers.store.ending import Finish
from handlers.store.operations import StoredOperation
from nexus_spec import (
    Completion,
    Failure,
    OperationState,
    PayloadSerializer,
    UnencodableValue,
    error_of_failure,
    failure_of_error,
    failure_to_bytes,
    parse_failure,
    render_completion,
)
from nexus_spec.json_text import json_text
from nexus_spec.limits import PAYLOAD_BYTES

Waiter = asyncio.Future[Succeeded | None]


class Deliveries(Terms, Protocol):
    """Where frozen completions go: the delivery of `callbacks`."""

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Send completions that were frozen as claimed."""


@dataclass(slots=True)
class Ended:
    """How an operation ended."""

    state: State
    content: Content | None = None
    failure: Failure | None = None
    detail: str | None = None  # for operators only

    def error(self) -> OperationError:
        """Return the failed or canceled outcome as an exception."""
        return _operation_error(self.failure, self.state)


def succeeded(value: Any, serializer: PayloadSerializer) -> Ended:
    """Return the end of an operation that has a result; failed where it cannot be sent."""
    try:
        content = serializer.serialize(value)
    except UnencodableValue as error:
        return failed("the operation's result cannot be serialized", detail=str(error))
    return succeeded_with(content)


def succeeded_with(content: Content) -> Ended:
    """Return the end of an operation whose result is serialized already."""
    if len(content.data) > PAYLOAD_BYTES:
        return failed(
            f"the operation's result of {len(content.data)} bytes is over the limit of "
            f"{PAYLOAD_BYTES} bytes"
        )
    return Ended(State.SUCCEEDED, content=content)


def ended_by(error: OperationError, detail: str | None = None) -> Ended:
    """Return the end of an operation that is reported by this error."""
    state = State.CANCELED if error.state is OperationErrorState.CANCELED else State.FAILED
    return Ended(state, failure=failure_of_error(error), detail=detail)


def failed(message: str, detail: str | None = None) -> Ended:
    """Return the end of an operation that failed with this message for its caller."""
    return ended_by(OperationError(message, state=OperationErrorState.FAILED), detail)


def canceled(message: str = "operation canceled") -> Ended:
    """Return the end of an operation that was canceled."""
    return ended_by(OperationError(message, state=OperationErrorState.CANCELED))


def ended_of(stored: StoredOperation) -> Ended:
    """Return how a stored operation ended."""
    if stored.state is State.SUCCEEDED:
        headers = json.loads(stored.output_headers or "{}")
        return Ended(stored.state, content=Content(headers=headers, data=stored.output or b""))
    return Ended(stored.state, failure=parse_failure(stored.failure or b"{}"))


def rendered(
    token: str,
    ended: Ended,
    *,
    created_at: int,
    closed_at: int,
    links: Sequence[Link],
    trace_context: str | None,
) -> RenderedCompletion:
    """Return a completion as it goes out, without the callers' own headers."""
    headers, body = render_completion(
        Completion(
            state=OperationState(ended.state.value),
            token=token,
            start_time=_moment(created_at),
            close_time=_moment(closed_at),
            links=tuple(links),
            content=ended.content,
            failure=ended.failure,
        )
    )
    if trace_context is not None:
        headers.append(("traceparent", trace_context))
    return headers, body


def rendered_of(stored: StoredOperation) -> RenderedCompletion:
    """Return the completion of an operation that has ended already."""
    assert stored.closed_at is not None
    return rendered(
        stored.token,
        ended_of(stored),
        created_at=stored.created_at,
        closed_at=stored.closed_at,
        links=links_from_json(stored.handler_links),
        trace_context=stored.trace_context,
    )


class Endings:
    """Ends operations, hands their completions on and tells those who wait."""

    def __init__(
        self,
        database: Writer,
        deliveries: Deliveries,
        stats: EngineStats,
        *,
        clock: Clock,
        retention_ms: int,
    ) -> None:
        """Make what ends operations.

        Take the database, where completions go, the counters, the clock, and how long an operation
        is kept after its end.
        """
        self._database = database
        self._deliveries = deliveries
        self._stats = stats
        self._clock = clock
        self._retention_ms = retention_ms
        self._last_end = 0
        self._waiting: defaultdict[str, list[Waiter]] = defaultdict(list)
        self._releasing = False
        self._tasks: set[asyncio.Task[bool]] = set()
        self.on_unattended: Callable[[str], None] = lambda _: None
        """Told of each operation that ended without its handler, other than with a result."""

    async def finish(
        self,
        token: str,
        epoch: int | None,
        ended: Ended,
        *,
        labels: tuple[str, str, str],
        created_at: int,
        links: Sequence[Link],
        trace_context: str | None,
    ) -> bool:
        """End an operation and send its completion; return False where it is not ours to end.

        Args:
            token: The operation.
            epoch: The claim under which it runs, or None to end it whoever runs it.
            ended: How it ends.
            labels: Endpoint, service and operation, for the counters.
            created_at: When it was started, in milliseconds since 1970.
            links: The handler's links.
            trace_context: The `traceparent` that the completion carries.
        """
        now = self._clock.now_ms()
        if epoch is None:
            # Two ends from outside in one millisecond must not be taken for one that is repeated.
            now = self._last_end = max(now, self._last_end + 1)
        content = ended.content
        links = tuple(links)
        completion: Callable[[], RenderedCompletion] = partial(
            rendered,
            token,
            ended,
            created_at=created_at,
            closed_at=now,
            links=links,
            trace_context=trace_context,
        )
        if content is None or links:
            # What cannot be sent has to show here: the write would be tried again for ever.
            made = completion()

            def completion() -> RenderedCompletion:
                return made

        deliveries = await persist(
            self._database,
            Finish(
                token=token,
                epoch=epoch,
                state=ended.state,
                output=content.data if content is not None else None,
                output_headers=json_text(dict(content.headers)) if content is not None else None,
                failure=failure_to_bytes(ended.failure) if ended.failure is not None else None,
                error_detail=ended.detail,
                completion=completion,
                now=now,
                retention_ms=self._retention_ms,
                terms=self._deliveries,
            ),
        )
        if deliveries is None:
            return False
        if deliveries:
            self._deliveries.submit(deliveries)
        self._stats.ended[(*labels, ended.state.value)] += 1
        self._stats.duration.observe((now - created_at) / 1000)
        # Of what ends otherwise the row alone says what a caller is to see of it.
        answer = None if content is None or epoch is None else Succeeded(content, links)
        self.tell(token, answer)
        if epoch is None and ended.state is not State.SUCCEEDED:
            self.on_unattended(token)
        return True

    def tell(self, token: str, answer: Succeeded | None = None) -> None:
        """Wake those who wait for an operation: it has ended, with this answer if it is known."""
        for waiter in self._waiting.pop(token, ()):
            if not waiter.done():
                waiter.set_result(answer)

    def tell_all(self) -> None:
        """Wake all who wait, to look for themselves: word of an end may have been missed."""
        for token in list(self._waiting):
            self.tell(token)

    async def finish_stored(
        self, stored: StoredOperation, ended: Ended, links: Sequence[Link] | None = None
    ) -> bool:
        """End an operation that no handler here runs; return False where it has ended already.

        Whoever asks may be cut off meanwhile: once begun this is carried through, or the
        completion would be claimed in the database and sent by nobody.
        """
        if stored.state.ended:
            return False
        task = asyncio.get_running_loop().create_task(
            self.finish(
                stored.token,
                None,
                ended,
                labels=(stored.endpoint, stored.service, stored.operation),
                created_at=stored.created_at,
                links=links_from_json(stored.handler_links) if links is None else links,
                trace_context=stored.trace_context,
            )
        )
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    @property
    def releasing(self) -> bool:
        """Whether nobody is to wait any longer."""
        return self._releasing

    def will_end(self, token: str) -> Waiter:
        """Return a future that is done when the operation may have ended, or the server drains.

        It has the operation's answer where that is known, and None where it is to be looked up.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        if self._releasing:
            waiter.set_result(None)
        else:
            self._waiting[token].append(waiter)
        return waiter

    def no_longer_waits(self, token: str, waiter: Waiter) -> None:
        """Forget a future of `will_end`."""
        waiters = self._waiting.get(token)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[token]

    def release(self) -> None:
        """Answer all who wait, now and from here on: the server is about to stop."""
        self._releasing = True
        self.tell_all()


def outcome(ended: Ended, links: tuple[Link, ...]) -> Succeeded:
    """Return a result as the answer of a request.

    Raises:
        OperationError: The operation failed or was canceled.
    """
    if ended.content is None:
        raise ended.error()
    return Succeeded(ended.content, links)


def _operation_error(failure: Failure | None, state: State) -> OperationError:
    error = error_of_failure(failure, state=state.value)
    if isinstance(error, OperationError):
        return error
    wrapper = OperationError(error.message, state=OperationErrorState(state.value))
    wrapper.__cause__ = error
    return wrapper


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
