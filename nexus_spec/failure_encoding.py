"""Errors to Failures: always the typed form, with the causes that callers may see."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import nexusrpc
from nexusrpc import HandlerError, OperationError, OperationErrorState

from nexus_spec.errors import InvalidWireValue
from nexus_spec.failure_decoding import RemoteFailure, reported_failure
from nexus_spec.failure_json import (
    HANDLER_ERROR,
    MAX_CAUSES,
    OPERATION_ERROR,
    TEMPORAL_FAILURE,
    UNWRAP_ERROR,
    Failure,
    metadata_type,
)


def failure_of_error(error: HandlerError | OperationError) -> Failure:
    """Return the typed Failure of an error, to be sent.

    An error that was read from the wire is told as it came. Otherwise the cause is the error's
    `original_failure` or else its `__cause__`. Exceptions in that chain whose text was written
    for callers (nexusrpc's errors, `InvalidWireValue`, `RemoteFailure`) are told with it, any
    other one by the name of its class only. Stack traces are sent only where the error carries one.

    Spec: SPEC.md#predefined-failure-types
    """
    chain: list[Failure] = []
    told: BaseException | None = error
    while told is not None and len(chain) <= MAX_CAUSES:
        failure, whole = _level(told)
        chain.append(failure)
        if whole:
            break
        told = told.__cause__
    for outer, inner in itertools.pairwise(chain):
        outer.cause = inner
    return chain[0]


def application_error(
    message: str,
    *,
    type: str,
    non_retryable: bool = False,
    state: OperationErrorState = OperationErrorState.FAILED,
) -> OperationError:
    """Return an error that a Temporal workflow sees as an application error of a given type.

    Other callers see an OperationError with the same message.

    Spec: SPEC.md#operation-error
    """
    info: dict[str, Any] = {"type": type}
    if non_retryable:
        info["nonRetryable"] = True
    cause = Failure(
        message=message,
        metadata={"type": TEMPORAL_FAILURE},
        details={"applicationFailureInfo": info},
    )
    failure = Failure(
        message=message,
        metadata={"type": OPERATION_ERROR, UNWRAP_ERROR: "true"},
        details={"state": state.value},
        cause=cause,
    )
    error = OperationError(message, state=state, original_failure=failure)
    error.__cause__ = RemoteFailure(cause)
    return error


def _level(told: BaseException) -> tuple[Failure, bool]:
    """Return the Failure of one exception, and whether it already holds all its causes."""
    match told:
        case HandlerError() | OperationError():
            original = told.original_failure
            if original is None:
                return _typed(told), False
            return _of_original(told, original), True
        case RemoteFailure():
            return _as_failure(told.failure), True
        case InvalidWireValue():
            return Failure(message=str(told)), False
        case _:
            return Failure(message=type(told).__name__), False


def _typed(error: HandlerError | OperationError) -> Failure:
    details: dict[str, Any]
    if isinstance(error, HandlerError):
        type_, details = HANDLER_ERROR, {"type": error.raw_error_type}
        if error.retryable_override is not None:
            details["retryableOverride"] = error.retryable_override
    else:
        type_, details = OPERATION_ERROR, {"state": error.state.value}
    return Failure(
        message=error.message,
        stack_trace=error.stack_trace,
        metadata={"type": type_},
        details=details,
    )


def _of_original(error: HandlerError | OperationError, original: nexusrpc.Failure) -> Failure:
    typed = _typed(error)
    form = metadata_type(original)
    told = reported_failure(original)
    details: Any = original.details
    same_message = told.message == error.message
    if same_message and form == (typed.metadata or {})["type"] and _agree(details, typed.details):
        return _as_failure(original)
    if same_message and form is None and isinstance(details, Mapping | None):
        # The old form of the same error: it gains its type and keeps all else.
        return Failure(
            message=error.message,
            stack_trace=error.stack_trace,
            metadata={**(original.metadata or {}), **(typed.metadata or {})},
            details={**(details or {}), **typed.details},
            cause=original.cause,
            unknown=original.unknown if isinstance(original, Failure) else {},
        )
    typed.cause = original
    if isinstance(error, OperationError) and form == TEMPORAL_FAILURE:
        typed.metadata = {**(typed.metadata or {}), UNWRAP_ERROR: "true"}
    return typed


def _agree(details: object, typed: Mapping[str, Any]) -> bool:
    return isinstance(details, Mapping) and all(
        details.get(key) == typed.get(key) for key in ("type", "retryableOverride", "state")
    )


def _as_failure(failure: nexusrpc.Failure) -> Failure:
    if isinstance(failure, Failure):
        return failure
    return Failure(
        message=failure.message,
        stack_trace=failure.stack_trace,
        metadata=failure.metadata,
        details=failure.details,
        cause=failure.cause,
    )
