"""What can go wrong, and the protocol's table of handler error types.

```
NexusError                  never raised itself
├─ InvalidWireValue         bytes or text from a peer that break the protocol's rules
├─ UnencodableValue         a value of our own side that has no wire form
└─ RemoteFailure            a Failure that is no protocol error; only ever the `__cause__` of one
nexusrpc.HandlerError       a request failed; type, status and retry rule come from ERROR_KINDS
nexusrpc.OperationError     an operation failed or was canceled
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nexusrpc import HandlerError, HandlerErrorType


class NexusError(Exception):
    """The base of this project's own errors; never raised itself."""


class InvalidWireValue(NexusError, ValueError):
    """Something a peer sent breaks the protocol's rules.

    The message is fit for that peer: it says what is wrong and what is expected, and echoes at
    most a few characters of what was sent.
    """


class UnencodableValue(NexusError, TypeError):
    """A value of our own side, say an operation's result, has no form on the wire."""


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table of predefined handler errors."""

    type: str
    status: int
    retryable: bool


_ROWS = (
    ErrorKind("BAD_REQUEST", 400, retryable=False),
    ErrorKind("UNAUTHENTICATED", 401, retryable=False),
    ErrorKind("UNAUTHORIZED", 403, retryable=False),
    ErrorKind("NOT_FOUND", 404, retryable=False),
    ErrorKind("REQUEST_TIMEOUT", 408, retryable=True),
    ErrorKind("CONFLICT", 409, retryable=False),
    ErrorKind("RESOURCE_EXHAUSTED", 429, retryable=True),
    ErrorKind("INTERNAL", 500, retryable=True),
    ErrorKind("NOT_IMPLEMENTED", 501, retryable=False),
    ErrorKind("UNAVAILABLE", 503, retryable=True),
    ErrorKind("UPSTREAM_TIMEOUT", 520, retryable=True),
)

ERROR_KINDS: Mapping[str, ErrorKind] = MappingProxyType({kind.type: kind for kind in _ROWS})
"""The predefined handler errors by type name. Spec: SPEC.md#predefined-handler-errors"""

UNKNOWN = HandlerErrorType.UNKNOWN.value
"""The type of an error whose type or status is not in the table; retryable, sent as 500."""

_TYPE_BY_STATUS = {kind.status: kind.type for kind in _ROWS}


def status_of(type: HandlerErrorType | str) -> int:
    """Return the HTTP status that carries a handler error of this type; 500 for unknown types.

    Spec: SPEC.md#predefined-handler-errors
    """
    name = type.value if isinstance(type, HandlerErrorType) else type
    kind = ERROR_KINDS.get(name)
    return kind.status if kind is not None else 500


def type_of_status(status: int) -> str:
    """Return the handler error type that an HTTP status stands for; "UNKNOWN" if none does.

    Spec: SPEC.md#predefined-handler-errors
    """
    return _TYPE_BY_STATUS.get(status, UNKNOWN)


def is_retryable(error: HandlerError) -> bool:
    """Tell whether a caller may send the request again: the error's override, else the table.

    Types outside the table are retryable.

    Spec: SPEC.md#predefined-handler-errors
    """
    if error.retryable_override is not None:
        return error.retryable_override
    kind = ERROR_KINDS.get(error.raw_error_type)
    return kind.retryable if kind is not None else True
