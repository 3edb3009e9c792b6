"""The decorator, and the names of nexusrpc that are not public."""

from datetime import timedelta
from typing import Any

import nexusrpc
import pytest
from nexusrpc import HandlerError
from nexusrpc._util import is_async_callable
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from nexusrpc.handler._core import ServiceHandler
from nexusrpc.handler._operation_handler import SyncOperationHandler
from nexusrpc.handler._syncio import SyncOperationHandler as ThreadedSyncOperationHandler

from handlers import DurableContext, durable_operation
from handlers.durable import DurableOperationHandler
from handlers.services import InvalidService, Kind, ServiceRegistry

pytestmark = pytest.mark.anyio


@nexusrpc.service(name="orders/v1")
class Orders:
    place: nexusrpc.Operation[int, str]
    quote: nexusrpc.Operation[int, int] = nexusrpc.Operation(name="get-quote")


@service_handler(service=Orders)
class OrdersHandler:
    @durable_operation(timeout=timedelta(days=2))
    async def place(self, ctx: DurableContext, input: int) -> str:
        """Place an order."""
        return str(input)

    @sync_operation
    async def quote(self, ctx: StartOperationContext, input: int) -> int:
        return input


@service_handler
class Plain:
    @durable_operation
    async def bare(self, ctx: DurableContext, input: int) -> None:
        pass

    @durable_operation(name="other name")
    async def named(self, ctx: DurableContext, input: list[int]) -> bytes:
        return b""

    @sync_operation
    def threaded(self, ctx: StartOperationContext, input: int) -> int:
        return input


def test_operations_are_found_with_their_types() -> None:
    registry = ServiceRegistry({"default": [OrdersHandler(), Plain()], "other": [Plain()]})
    place = registry.find("default", "orders/v1", "place")
    assert (place.kind, place.input_type, place.output_type) == (Kind.DURABLE, int, str)
    assert place.durable.timeout == timedelta(days=2)
    assert place.description == "Place an order."
    assert registry.find("default", "orders/v1", "get-quote").kind is Kind.INLINE
    bare = registry.find("other", "Plain", "bare")
    assert (bare.kind, bare.input_type, bare.description) == (Kind.DURABLE, int, None)
    named = registry.find("default", "Plain", "other name")
    assert (named.input_type, named.output_type) == (list[int], bytes)
    assert registry.find("default", "Plain", "threaded").kind is Kind.INLINE
    assert len(list(registry)) == 8
    assert registry.get("default", "Plain", "gone") is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (("no", "Plain", "bare"), "there is no endpoint 'no'"),
        (("default", "no", "bare"), "there is no service 'no' at endpoint 'default'"),
        (("default", "Plain", "no"), "service 'Plain' has no operation 'no'"),
    ],
)
def test_what_is_not_there_is_named(address: tuple[str, str, str], message: str) -> None:
    with pytest.raises(HandlerError) as raised:
        ServiceRegistry({"default": [Plain()]}).find(*address)
    assert raised.value.message == message


async def test_only_the_engine_starts_and_cancels() -> None:
    handler = ServiceHandler.from_user_instance(OrdersHandler()).operation_handlers["place"]
    assert isinstance(handler, DurableOperationHandler)
    with pytest.raises(RuntimeError):
        await handler.start(None, 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        await handler.cancel(None, "t")  # type: ignore[arg-type]


def test_bad_methods_are_refused() -> None:
    def plain(self: Any, ctx: DurableContext, input: int) -> None: ...
    async def few(self: Any, ctx: DurableContext) -> None: ...
    async def many(self: Any, ctx: DurableContext, a: int, b: int) -> None: ...

    for method, message in ((plain, "async def"), (few, "must take"), (many, "must take")):
        with pytest.raises(TypeError, match=message):
            durable_operation(method)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="positive"):
        durable_operation(timeout=timedelta(0))


def test_a_mismatch_with_the_definition_is_refused() -> None:
    with pytest.raises(TypeError, match="type mismatch"):

        @service_handler(service=Orders)
        class Wrong:
            @durable_operation
            async def place(self, ctx: DurableContext, input: str) -> str:
                return input

            @sync_operation
            async def quote(self, ctx: StartOperationContext, input: int) -> int:
                return input


def test_types_that_do_not_resolve_come_from_the_definition() -> None:
    @service_handler(service=Orders)
    class Later:
        @durable_operation
        async def place(self, ctx: DurableContext, input: "Unknown") -> str:  # type: ignore[name-defined]  # noqa: F821
            return ""

        @sync_operation
        async def quote(self, ctx: StartOperationContext, input: int) -> int:
            return input

    registry = ServiceRegistry({"default": [Later()]})
    assert registry.find("default", "orders/v1", "place").input_type is int


def test_bad_services_are_refused() -> None:
    @service_handler(name="..")
    class Dots(Plain):
        pass

    for services, message in (
        ([Plain], "is a class; give an instance"),
        ([object()], "is no service handler"),
        ([Plain(), Plain()], "two services named 'Plain'"),
        ([Dots()], "cannot be served"),
    ):
        with pytest.raises(InvalidService, match=message):
            ServiceRegistry({"default": services})
    registry = ServiceRegistry({"default": [ServiceHandler.from_user_instance(Plain())]})
    assert len(list(registry)) == 3


def test_the_private_names_of_nexusrpc_are_where_they_are_looked_for() -> None:
    assert callable(Plain.bare.__nexus_operation_factory__)  # type: ignore[attr-defined]
    handlers = ServiceHandler.from_user_instance(Plain()).operation_handlers
    assert isinstance(handlers["threaded"], ThreadedSyncOperationHandler)
    orders = ServiceHandler.from_user_instance(OrdersHandler())
    assert isinstance(orders.operation_handlers["get-quote"], SyncOperationHandler)
    assert orders.service.operation_definitions["get-quote"].method_name == "quote"
    assert is_async_callable(OrdersHandler().place)
    assert not is_async_callable(Plain().threaded)
