"""Which service an `Operation` belongs to: nexusrpc does not note it on the object."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import nexusrpc
from nexusrpc import Operation

from clients.errors import ServiceUnresolved

__all__ = ["ServiceNames", "Target", "service_name"]


class Target(NamedTuple):
    """What is called: the names on the wire, and the type that its result is read as."""

    service: str
    operation: str
    output_type: Any


class ServiceNames:
    """Finds the service of an operation by the one thing that is certain: the object itself.

    `@nexusrpc.service` leaves the very object that `Orders.place` yields in the class's own
    namespace. So the classes that exist are asked, through `__subclasses__`, which of them is a
    service and holds this object; names and types decide nothing, and services with operations of
    the same name are told apart. What was found is remembered and checked again at each use.

    An inherited operation is one object for parent and child (`Child.place is Parent.place`):
    nobody can tell which of the two was written. If their service names differ this is refused,
    and the caller says `service=`.
    """

    def __init__(self) -> None:
        self._owners: dict[int, weakref.ref[type]] = {}

    def target_of(
        self, op: Operation[Any, Any] | tuple[str, str], service: type | str | None = None
    ) -> Target:
        """Return what an operation's definition, or the pair (service, operation), stands for.

        `service`, a class or a name, decides where the definition alone does not.

        Raises:
            ServiceUnresolved: the definition does not tell its service.
            TypeError: `op` is neither of the two.
            ValueError: a service is given beside names.
        """
        if isinstance(op, Operation):
            name = self.name_of(op) if service is None else service_name(service)
            return Target(name, op.name, op.output_type)
        # Callers without a type checker give other things.
        if not isinstance(op, tuple):  # type: ignore[redundant-expr, unreachable, unused-ignore]
            raise TypeError(f"{op!r} is neither an Operation nor a pair (service, operation)")
        if service is not None:
            raise ValueError("service= goes with an Operation, not with names")
        return Target(*op, None)

    def name_of(self, operation: Operation[Any, Any]) -> str:
        """Return the name of the one service that defines this operation.

        Raises:
            ServiceUnresolved: there is none, or there are several.
        """
        owner = self._remembered(operation)
        owners = [owner] if owner is not None else list(_owners(operation, object))
        names = sorted({name for owner in owners for name in _names(operation, owner)})
        match names:
            case [name]:
                if len(owners) == 1:
                    self._owners[id(operation)] = weakref.ref(owners[0])
                return name
            case []:
                raise ServiceUnresolved(
                    f"operation {operation.name!r} belongs to no class decorated with"
                    " @nexusrpc.service: pass service=, or name both: (service, operation)"
                )
            case _:
                raise ServiceUnresolved(
                    f"operation {operation.name!r} belongs to several services"
                    f" ({', '.join(names)}): pass service= to say which is meant"
                )

    def _remembered(self, operation: Operation[Any, Any]) -> type | None:
        found = self._owners.get(id(operation))
        owner = found() if found is not None else None
        # An id may have been given to another object since.
        return owner if owner is not None and _holds(owner, operation) else None


def service_name(service: type | str) -> str:
    """Return the name by which a service is addressed, given its class or the name itself.

    Raises:
        ServiceUnresolved: the class is not decorated with `@nexusrpc.service`.
    """
    if isinstance(service, str):
        return service
    definition = nexusrpc.get_service_definition(service)
    if definition is None:
        raise ServiceUnresolved(f"{service!r} is not decorated with @nexusrpc.service")
    return definition.name


def _owners(operation: Operation[Any, Any], root: type) -> Iterator[type]:
    seen: set[type] = set()
    pending = [root]
    while pending:
        cls = pending.pop()
        if cls in seen:
            continue
        seen.add(cls)
        if _holds(cls, operation):
            yield cls
        # Called on `type`: a metaclass has no bound __subclasses__ of its own.
        pending.extend(type.__subclasses__(cls))


def _holds(cls: type, operation: Operation[Any, Any]) -> bool:
    attribute = operation.method_name or operation.name
    return (
        vars(cls).get(attribute) is operation and nexusrpc.get_service_definition(cls) is not None
    )


def _names(operation: Operation[Any, Any], owner: type) -> Iterator[str]:
    """Yield the names of the owner's service and of those that inherit the operation from it."""
    pending = [owner]
    while pending:
        cls = pending.pop()
        pending.extend(type.__subclasses__(cls))
        definition = nexusrpc.get_service_definition(cls)
        if (
            definition is not None
            and operation.name in definition.operation_definitions
            and getattr(cls, operation.method_name or operation.name, None) is operation
        ):
            yield definition.name
