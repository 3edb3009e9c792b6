"""What a durable handler is given to work with."""

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from nexusrpc import Link, Operation

from handlers.call_plan import CallableOperation, CallPlan
from handlers.called_operation import CalledOperation
from handlers.calls import Calls
from handlers.context_call import ContextCall
from handlers.execution import Execution
from handlers.retry_policy import RetryPolicy
from nexus_spec import format_link

if TYPE_CHECKING:
    from handlers.live_operation import LiveOperation

T = TypeVar("T")
InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class DurableContext:
    """The durable world of one operation: what is done through it happens once.

    A handler may be run several times, after a crash for one, and then gets recorded results for
    what it did before. So everything that touches the world goes through `step`, and the code
    between is free of side effects and of chance: use `now`, `uuid` and `random` from here.
    """

    def __init__(
        self, execution: Execution, operation: "LiveOperation", calls: Calls | None = None
    ) -> None:
        self._execution = execution
        self._operation = operation
        self._calls = calls

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
    def step(
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def step(
        self,
        fn: Callable[..., T],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Coroutine[Any, Any, T]: ...

    def step(
        self,
        fn: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Coroutine[Any, Any, Any]:
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
        execution = self._execution
        return ContextCall(
            execution,
            f"step({name or getattr(fn, '__name__', fn)})",
            partial(execution.step, fn, args, name=name, retry=retry, timeout=timeout),
        )

    def sleep(self, duration: timedelta) -> Coroutine[Any, Any, None]:
        """Wait, also across restarts: what has passed of the wait stays passed.

        A handler that has nothing else to do leaves memory meanwhile, and is run again from its
        beginning, over its journal, when the time has come. What it awaits of its own beside
        this (`asyncio.sleep`, a lock, an `asyncio.timeout`) keeps it in memory and would begin
        anew after a restart.

        Raises:
            asyncio.CancelledError: The operation is canceled or past its deadline.
        """
        execution = self._execution
        return ContextCall(execution, "sleep(...)", partial(execution.sleep, duration))

    @overload
    def wait_for(
        self, name: str, type: type[T], *, timeout: timedelta | None = None
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def wait_for(
        self, name: str, type: Any = Any, *, timeout: timedelta | None = None
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for(
        self, name: str, type: Any = Any, *, timeout: timedelta | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Wait for the operation's next signal of this name and return what it says.

        Signals are kept: the first wait gets the first signal, whether it came before or after,
        the second wait the second. Each is got by one wait, once. The handler may leave memory
        meanwhile, as in `sleep`.

        Args:
            name: The signal's name, as its sender gives it.
            type: What its payload is read as; plain JSON values by default.
            timeout: How long to wait; a restart does not begin it anew.

        Raises:
            TimeoutError: No signal came in time.
            InvalidSignal: The payload is not of that type. The signal counts as received, so
                that waiting again waits for the next.
            asyncio.CancelledError: The operation is canceled or past its deadline.
        """
        execution = self._execution
        return ContextCall(
            execution,
            f"wait_for({name!r})",
            partial(execution.wait_for, name, type, timeout),
        )

    @overload
    def call(
        self,
        op: Operation[InputT, OutputT],
        input: InputT,
        *,
        endpoint: str,
        service: type | str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, OutputT]: ...

    @overload
    def call(
        self,
        op: tuple[str, str],
        input: Any = None,
        *,
        endpoint: str,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, Any]: ...

    def call(
        self,
        op: CallableOperation,
        input: Any = None,
        *,
        endpoint: str,
        service: type | str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Start an operation of another endpoint, once, and wait for its result.

        It is started under one request id, however often that is tried, and waited for as long
        as it takes; the handler may leave memory meanwhile, as in `sleep`. Where this operation
        is canceled, or its deadline passes, the other one is asked to cancel.

        Args:
            op: An attribute of a service definition, `Shipping.book`, or the names
                `("shipping", "book")`.
            input: Its input.
            endpoint: The name of an endpoint of the settings that has a url.
            service: The service of `op`, where the definition does not tell.
            timeout: How long it may take, the time until it is started included.
            headers: Headers for its handler.

        Raises:
            nexusrpc.OperationError: It ended failed or canceled. Not caught, that ends this
                operation so as well.
            CallError: The other side refused to start it.
            CallTimedOut: It did not end within `timeout`.
            asyncio.CancelledError: This operation is canceled or past its deadline.
            StepArgumentsInvalid: The call cannot be made like this.
        """
        plan = partial(self._plan, op, input, endpoint, service, timeout, headers)

        async def make() -> Any:
            calls, planned = plan()
            return await calls.call(planned)

        return ContextCall(self._execution, f"call({_named(op)})", make)

    @overload
    def start_call(
        self,
        op: Operation[InputT, OutputT],
        input: InputT,
        *,
        endpoint: str,
        service: type | str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, CalledOperation[OutputT]]: ...

    @overload
    def start_call(
        self,
        op: tuple[str, str],
        input: Any = None,
        *,
        endpoint: str,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, CalledOperation[Any]]: ...

    def start_call(
        self,
        op: CallableOperation,
        input: Any = None,
        *,
        endpoint: str,
        service: type | str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, CalledOperation[Any]]:
        """Start an operation of another endpoint, once, and go on beside it.

        As `call`, but what comes back is a handle to wait for the result with, or to cancel. An
        operation that nobody waits for runs on when this one has ended.
        """
        plan = partial(self._plan, op, input, endpoint, service, timeout, headers)

        async def make() -> CalledOperation[Any]:
            calls, planned = plan()
            return CalledOperation(self._execution, calls, await calls.start(planned))

        return ContextCall(self._execution, f"start_call({_named(op)})", make)

    def _plan(
        self,
        op: CallableOperation,
        input: Any,
        endpoint: str,
        service: type | str | None,
        timeout: timedelta | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[Calls, CallPlan]:
        if self._calls is None:
            raise RuntimeError("this engine was made without outgoing calls")
        planned = self._calls.plan(
            op, input, endpoint=endpoint, service=service, timeout=timeout, headers=headers
        )
        return self._calls, planned

    def patched(self, name: str) -> Coroutine[Any, Any, bool]:
        """Whether this operation takes changed code: the way to change a handler in use.

        Code that asks for other steps than those that a running operation has recorded pauses
        it. So guard the change, and keep the old code while operations that took it are running:

            if await ctx.patched("charge by card"):
                await ctx.step(charge_card, order)
            else:
                await ctx.step(charge, order)

        Args:
            name: Names the change, for good.

        Returns:
            True for operations that come here for the first time, which is recorded; False where
            an operation went on from here before the change.
        """
        execution = self._execution
        return ContextCall(execution, f"patched({name!r})", partial(execution.patched, name))

    async def gather(self, *awaitables: Awaitable[Any]) -> list[Any]:
        """Run branches at the same time and return their results in order, once all have ended.

        Other than `asyncio.gather`, which is allowed as well, it raises the first error, in the
        order of the arguments, only when no branch runs any more; and each branch has its place
        in the journal from its place here, whichever makes its first call first.

        Raises:
            BaseException: What the first of the branches that failed raised.
            asyncio.CancelledError: The operation is canceled or past its deadline; the branches
                were cancelled, and have ended.
        """
        return await self._execution.gather(awaitables)

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


def _named(op: CallableOperation) -> str:
    return op.name if isinstance(op, Operation) else "/".join(map(str, op))
