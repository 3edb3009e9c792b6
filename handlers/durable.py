"""`@durable_operation`: an operation whose handler survives the process it runs in."""

import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar, get_type_hints, overload

import nexusrpc
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
)

from handlers.context import DurableContext

# nexusrpc's decorators find an operation's factory under this attribute of the method. It is not
# public; tests/handlers/test_durable.py holds it.
_FACTORY_ATTRIBUTE = "__nexus_operation_factory__"

MethodT = TypeVar("MethodT", bound=Callable[[Any, DurableContext, Any], Awaitable[Any]])


class DurableOperationHandler(OperationHandler[Any, Any]):
    """Marks an operation that the gateway's engine runs.

    Attributes:
        run: The bound method.
        timeout: The longest that the operation may take, or None.
    """

    def __init__(
        self, run: Callable[[DurableContext, Any], Awaitable[Any]], timeout: timedelta | None
    ) -> None:
        self.run = run
        self.timeout = timeout

    async def start(self, ctx: StartOperationContext, input: Any) -> StartOperationResultAsync:
        """Refuse: only the engine of the gateway can start a durable operation."""
        raise RuntimeError("a durable operation is started by the gateway, not by its handler")

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        """Refuse: only the engine of the gateway can cancel a durable operation."""
        raise RuntimeError("a durable operation is canceled by the gateway, not by its handler")


@overload
def durable_operation(method: MethodT) -> MethodT: ...


@overload
def durable_operation(
    *, name: str | None = None, timeout: timedelta | None = None
) -> Callable[[MethodT], MethodT]: ...


def durable_operation(
    method: MethodT | None = None,
    *,
    name: str | None = None,
    timeout: timedelta | None = None,
) -> MethodT | Callable[[MethodT], MethodT]:
    """Mark a method `(self, ctx: DurableContext, input)` as a durable operation.

    It is answered with a token as soon as it is recorded, runs to its end whatever crashes, and
    its completion goes to the caller's callback. Used below `@nexusrpc.handler.service_handler`
    like the decorators of nexusrpc itself.

    Args:
        method: The method, where the decorator is used bare.
        name: The operation's name; the method's by default.
        timeout: The longest that the operation may take; it then ends failed. A shorter
            `Operation-Timeout` of the caller takes precedence.

    Raises:
        TypeError: The method is not `async def`, or does not take a context and one input.
        ValueError: The timeout is not positive.
    """
    if timeout is not None and not isinstance(timeout, timedelta):
        raise TypeError(f"timeout must be a timedelta, not {timeout!r}: timedelta(hours=1)")
    if timeout is not None and timeout <= timedelta(0):
        raise ValueError("timeout must be positive")

    def decorate(method: MethodT) -> MethodT:
        _check(method)
        hints = _hints(method)
        parameters = list(inspect.signature(method).parameters)
        operation: nexusrpc.Operation[Any, Any] = nexusrpc.Operation(
            name=name or method.__name__,
            input_type=hints.get(parameters[2]),
            output_type=hints.get("return"),
        )
        operation.method_name = method.__name__

        def factory(self: Any) -> DurableOperationHandler:
            return DurableOperationHandler(method.__get__(self), timeout)

        nexusrpc.set_operation(factory, operation)
        setattr(method, _FACTORY_ATTRIBUTE, factory)
        return method

    return decorate if method is None else decorate(method)


def _check(method: Callable[..., Any]) -> None:
    name = getattr(method, "__qualname__", repr(method))
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"{name} must be `async def` to be a durable operation")
    positional = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) != 3:
        raise TypeError(f"{name} must take (self, ctx: DurableContext, input)")


def _hints(method: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(method)
    except (NameError, TypeError):
        # Types that do not resolve here may still come from the service definition.
        return {}
