"""An operation elsewhere that a handler has started and goes on beside."""

from collections.abc import Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from handlers.calls import Calls, StartedCall
from handlers.context_call import ContextCall
from handlers.execution import Execution

OutputT = TypeVar("OutputT")


class CalledOperation(Generic[OutputT]):
    """What `ctx.start_call` returns: wait for the operation, or have it canceled."""

    def __init__(self, execution: Execution, calls: Calls, started: StartedCall) -> None:
        self._execution = execution
        self._calls = calls
        self._started = started

    def __repr__(self) -> str:
        return f"<CalledOperation {self._started.key}>"

    @property
    def token(self) -> str | None:
        """Its token at the other side; None where the result came at once."""
        return self._started.token

    def result(self) -> Coroutine[Any, Any, OutputT]:
        """Wait until it has ended and return its result; the handler may leave memory meanwhile.

        Raises:
            nexusrpc.OperationError: It ended failed or canceled.
            CallTimedOut: It did not end within the `timeout` of its start.
            asyncio.CancelledError: This operation is canceled or past its deadline; the other one
                was asked to cancel.
        """
        return ContextCall(
            self._execution,
            f"start_call({self._started.plan.name}).result()",
            partial(self._calls.result, self._started),
        )

    def cancel(self) -> Coroutine[Any, Any, None]:
        """Ask the other side to cancel it; it may still end in any state.

        Raises:
            CallError: The other side refuses.
        """
        return ContextCall(
            self._execution,
            f"start_call({self._started.plan.name}).cancel()",
            partial(self._calls.cancel, self._started),
        )
