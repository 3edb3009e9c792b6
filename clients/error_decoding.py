"""From an error answer to the exception that the protocol means by it."""

from __future__ import annotations

from nexusrpc import HandlerError, OperationError

from clients.errors import MalformedResponse
from clients.sender import SentResponse
from nexus_spec import Failure, InvalidWireValue, error_of_failure, parse_failure
from nexus_spec.headers import OPERATION_STATE, REQUEST_RETRYABLE

__all__ = ["error_of_response", "has_failure"]

_OPERATION_FAILED = 424


def error_of_response(
    response: SentResponse,
) -> HandlerError | OperationError | MalformedResponse | None:
    """Turn an error answer into the exception to raise; None for 2xx.

    A typed Failure decides whatever the status. An untyped one, or none, becomes a `HandlerError`
    of the type that the status stands for, with the Failure as its cause; the deprecated header
    `Nexus-Request-Retryable` counts only then. Under 424 an untyped Failure is an `OperationError`
    of the state in the header. A redirect is never followed, and is a `MalformedResponse`.

    Spec: SPEC.md#predefined-handler-errors
    """
    status = response.status
    if 200 <= status < 300:
        return None
    if status < 400:
        return MalformedResponse(
            f"unexpected status {status}: redirects are not followed", status=status
        )
    failed = status == _OPERATION_FAILED
    failure = _failure(response)
    if failed and failure is None:
        # A proxy may use 424 for its own ends: without a Failure nothing says that this operation
        # failed, and a caller would believe it for good.
        return MalformedResponse("status 424 without a readable Failure", status=status)
    try:
        return error_of_failure(
            failure,
            status=status,
            # A state under another status would make an operation's end of a failed request.
            state=response.headers.get(OPERATION_STATE) if failed else None,
            retryable_header=response.headers.get(REQUEST_RETRYABLE),
        )
    except InvalidWireValue as error:
        return MalformedResponse(f"status {status} with an {error}", status=status)


def has_failure(response: SentResponse) -> bool:
    """Tell whether the body is a Failure that says something, not a framework's error page."""
    failure = _failure(response)
    return failure is not None and bool(failure.message or failure.metadata)


def _failure(response: SentResponse) -> Failure | None:
    try:
        return parse_failure(response.body)
    except InvalidWireValue:
        return None
