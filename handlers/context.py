"""What a durable handler is given to work with."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from nexusrpc import Link

from handlers.execution import Execution
from handlers.retry_policy import RetryPolicy
from nexus_spec import format_link

if TYPE_CHECKING:
    from handlers.live_operation import LiveOperation

T = TypeVar("T")


class DurableContext:
    """The durable world of one operation: what is done through it happens once.

    A handler may be run several times, after a crash for one, and then gets recorded results for
    what it did before. So everything that touches the world goes through `step`, and the code
    between is free of side effects and of chance: use `now`, `uuid` and `random` from here.
    """

    def __init__(self, execution: Execution, operation: "LiveOperation") -> None:
        self._execution = execution
        self._operation = operation

    def __repr__(self) -> str:
        return f"<DurableContext of operation {self.operation_token}>"

    # ------------------------------------------------------------ the operation

    @property
    def operation_token(self) -> str:
        """The token that the caller has of this operation."""
        return self._operation.token

    @property
    def request_id(self) -> str:
        """The caller's idempotency key of the start."""
        return self._operation.request_id

    @property
    def service(self) -> str:
        """The service as the caller named it."""
        return self._operation.hosted.service

    @property
    def operation(self) -> str:
        """The operation as the caller named it."""
        return self._operation.hosted.operation

    @property
    def caller(self) -> str:
        """The principal that started the operation; empty where callers are not authenticated."""
        return self._operation.caller

    @property
    def headers(self) -> Mapping[str, str]:
        """The caller's own headers, keys in lower case."""
        return self._operation.headers

    @property
    def links(self) -> Sequence[Link]:
        """Links to the caller's resources, as sent with the start."""
        return self._operation.links

    @property
    def deadline(self) -> datetime | None:
        """When the operation times out (UTC), if ever."""
        at = self._operation.deadline_at
        return None if at is None else datetime.fromtimestamp(at / 1000, UTC)

    @property
    def cancellation_requested(self) -> bool:
        """Whether the handler was told to end: canceled, or past its deadline."""
        return self._execution.interrupted

    @property
    def idempotency_key(self) -> str:
        """A key for the next call to another system, the same on every run.

        It names this operation and how far it is; take it outside the step and hand it in:
        `await ctx.step(charge, order, ctx.idempotency_key)`.
        """
        scope = self._execution.scope()
        done = sum(scope.counters.values())
        return f"{self.operation_token}/{scope.path}{done + 1}"

    # ------------------------------------------------------------ what happens once

    @overload
    async def step(
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> T: ...

    @overload
    async def step(
        self,
        fn: Callable[..., T],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> T: ...

    async def step(
        self,
        fn: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Any:
        """Run `fn(*args)` and record its result; once recorded it never runs again.

        A crash between the run and the record runs it again, so what it does should be
        idempotent (see `idempotency_key`).

        Args:
            fn: An `async def` function, or a plain one, which runs on a thread. Its declared
                result type decides what comes back; without one, plain JSON values do.
            *args: JSON-serializable values (pydantic models and dataclasses included).
            name: The step's name in the journal instead of the function's own.
            retry: How often it is tried; 5 times, 1 s doubling to 60 s, by default.
            timeout: How long one attempt of an `async def` function may take.

        Raises:
            StepError: It failed for good. Not caught, that fails the operation.
            nexusrpc.OperationError: The function raised one: the operation is to end so.
            asyncio.CancelledError: The operation is canceled or past its deadline.
            StepArgumentsInvalid: The arguments cannot be recorded.
        """
        return await self._execution.step(fn, args, name=name, retry=retry, timeout=timeout)

    async def sleep(self, duration: timedelta) -> None:
        """Wait, also across restarts: what has passed of the wait stays passed.

        Raises:
            asyncio.CancelledError: The operation is canceled or past its deadline.
        """
        await self._execution.sleep(duration)

    # ------------------------------------------------------------ the same on every run

    def now(self) -> datetime:
        """Return the time (UTC) at which the last step or sleep was recorded."""
        return datetime.fromtimestamp(self._execution.scope().now_ms / 1000, UTC)

    def uuid(self) -> UUID:
        """Return a UUID that no other call and no other operation gets."""
        return UUID(int=self._random().getrandbits(128), version=4)

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        return self._random().random()

    def _random(self) -> Random:
        # Drawn from the token, which is random enough, and from how often this was asked.
        scope = self._execution.scope()
        drawn = scope.counters.get("random", 0) + 1
        scope.counters["random"] = drawn
        return Random(f"{self.operation_token}/{scope.path}random#{drawn}")

    # ------------------------------------------------------------ what others see

    def progress(self, fraction: float, message: str = "") -> None:
        """Show operators and callers how far the operation is.

        Args:
            fraction: From 0 to 1.
            message: A few words.
        """
        self._execution.scope()
        shown = json.dumps({"fraction": min(1.0, max(0.0, fraction)), "message": message})
        self._operation.set_progress(shown)

    def add_link(self, link: Link) -> None:
        """Link the operation to a resource of the handler; sent along with the completion.

        Raises:
            InvalidWireValue: The link cannot be sent.
        """
        format_link(link)
        self._execution.scope()
        self._operation.add_link(link)
