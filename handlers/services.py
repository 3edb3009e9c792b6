"""Which operations there are: nexusrpc service handlers, by endpoint, service and operation."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import OperationHandler

# Not public: how a handler was decorated shows nowhere else. tests/handlers/test_services.py
# holds these names.
from nexusrpc.handler._core import ServiceHandler
from nexusrpc.handler._operation_handler import SyncOperationHandler
from nexusrpc.handler._syncio import SyncOperationHandler as ThreadedSyncOperationHandler

from handlers.durable import DurableOperationHandler
from handlers.replay_safety import find_unsafe
from nexus_spec import (
    InvalidWireValue,
    NexusError,
    PayloadSerializer,
    UnencodableValue,
    check_name,
)

DEFAULT_ENDPOINT = "default"


class InvalidService(NexusError, TypeError):
    """What was given as a service cannot be served; the message says why."""


class Kind(Enum):
    """How an operation is carried out."""

    INLINE = auto()  # answered with its result; nothing is recorded
    DURABLE = auto()  # recorded and run by the engine
    CUSTOM = auto()  # recorded; the handler's own OperationHandler runs it elsewhere


@dataclass(frozen=True, eq=False, slots=True)
class HostedOperation:
    """One operation, ready to be called."""

    endpoint: str
    service: str
    operation: str
    kind: Kind
    handler: OperationHandler[Any, Any]
    input_type: Any
    output_type: Any
    description: str | None

    @property
    def durable(self) -> DurableOperationHandler:
        """The handler of a durable operation."""
        assert isinstance(self.handler, DurableOperationHandler)
        return self.handler


class ServiceRegistry:
    """All that the gateway serves.

    Args:
        endpoints: For each endpoint name the service handler instances behind it.

    Raises:
        InvalidService: Something is no service handler instance, a name cannot be put into a
            URL, an endpoint has two services of one name, or a durable handler's code would take
            another path when it is run again.
    """

    def __init__(self, endpoints: Mapping[str, Sequence[Any]]) -> None:
        self._operations: dict[tuple[str, str, str], HostedOperation] = {}
        self._services: dict[tuple[str, str], list[HostedOperation]] = {}
        self.endpoints = tuple(endpoints)
        for endpoint, instances in endpoints.items():
            for instance in instances:
                self._add(endpoint, instance)

    def __iter__(self) -> Iterator[HostedOperation]:
        return iter(self._operations.values())

    def find(self, endpoint: str, service: str, operation: str) -> HostedOperation:
        """Return an operation.

        Raises:
            HandlerError: NOT_FOUND, naming what is unknown.
        """
        hosted = self._operations.get((endpoint, service, operation))
        if hosted is not None:
            return hosted
        if endpoint not in self.endpoints:
            message = f"there is no endpoint {endpoint!r}"
        elif (endpoint, service) not in self._services:
            message = f"there is no service {service!r} at endpoint {endpoint!r}"
        else:
            message = f"service {service!r} has no operation {operation!r}"
        raise HandlerError(message, type=HandlerErrorType.NOT_FOUND)

    def check_types(self, serializer: PayloadSerializer) -> None:
        """Check that a serializer can read every operation's input.

        Raises:
            InvalidService: It cannot; each start would fail.
        """
        for hosted in self:
            try:
                serializer.check_type(hosted.input_type)
            except UnencodableValue as error:
                raise InvalidService(
                    f"operation {hosted.service}/{hosted.operation} cannot be served: {error}"
                ) from error

    def get(self, endpoint: str, service: str, operation: str) -> HostedOperation | None:
        """Return an operation, or None where the code no longer has it."""
        return self._operations.get((endpoint, service, operation))

    def _add(self, endpoint: str, instance: Any) -> None:
        handler = _service_handler(instance)
        service = handler.service.name
        if (endpoint, service) in self._services:
            raise InvalidService(f"endpoint {endpoint!r} has two services named {service!r}")
        try:
            check_name(service, "service")
            for name in handler.service.operation_definitions:
                check_name(name, "operation")
        except InvalidWireValue as error:
            raise InvalidService(f"service {service!r} cannot be served: {error}") from error
        operations = self._services[endpoint, service] = []
        # In a fixed order: nexusrpc collects them in one that changes with every process.
        for name, definition in sorted(handler.service.operation_definitions.items()):
            operation_handler = handler.operation_handlers[name]
            if isinstance(operation_handler, DurableOperationHandler):
                _check_code(service, name, operation_handler)
            hosted = HostedOperation(
                endpoint=endpoint,
                service=service,
                operation=name,
                kind=_kind(operation_handler),
                handler=operation_handler,
                input_type=definition.input_type,
                output_type=definition.output_type,
                description=_description(instance, definition.method_name),
            )
            operations.append(hosted)
            self._operations[endpoint, service, name] = hosted


def _service_handler(instance: Any) -> ServiceHandler:
    if isinstance(instance, ServiceHandler):
        return instance
    if isinstance(instance, type):
        raise InvalidService(
            f"{instance.__name__} is a class; give an instance of it: {instance.__name__}()"
        )
    try:
        return ServiceHandler.from_user_instance(instance)
    except (RuntimeError, KeyError) as error:
        raise InvalidService(
            f"{instance!r} is no service handler: decorate its class with "
            "@nexusrpc.handler.service_handler"
        ) from error


def _check_code(service: str, operation: str, handler: DurableOperationHandler) -> None:
    problem = find_unsafe(handler.run)
    if problem is not None:
        raise InvalidService(f"operation {service}/{operation} cannot be served: {problem}")


def _kind(handler: OperationHandler[Any, Any]) -> Kind:
    if isinstance(handler, DurableOperationHandler):
        return Kind.DURABLE
    if isinstance(handler, SyncOperationHandler | ThreadedSyncOperationHandler):
        return Kind.INLINE
    return Kind.CUSTOM


def _description(instance: Any, method_name: str) -> str | None:
    method = getattr(instance, method_name, None)
    doc: str | None = getattr(method, "__doc__", None)
    return inspect.cleandoc(doc) if doc else None
