"""Failures to errors: what each of the three forms means."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import nexusrpc
from nexusrpc import HandlerError, OperationError, OperationErrorState

from nexus_spec.errors import ERROR_KINDS, UNKNOWN, InvalidWireValue, NexusError, type_of_status
from nexus_spec.failure_json import (
    HANDLER_ERROR,
    MAX_CAUSES,
    OPERATION_ERROR,
    TEMPORAL_FAILURE,
    UNWRAP_ERROR,
    Failure,
    metadata_type,
)

_Error = TypeVar("_Error", HandlerError, OperationError)

_STATES = {state.value: state for state in OperationErrorState}
_RETRY_BEHAVIORS = {
    "NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_RETRYABLE": True,
    "NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_NON_RETRYABLE": False,
}


class RemoteFailure(NexusError):
    """A Failure that is neither a HandlerError nor an OperationError: the cause of one.

    `type` and `non_retryable` are those of an application error of a Temporal worker, where the
    Failure is one; `failure` holds all of it.
    """

    def __init__(self, failure: nexusrpc.Failure) -> None:
        """Wrap a Failure."""
        super().__init__(failure.message)
        self.failure = failure
        self.message = failure.message
        self.stack_trace = failure.stack_trace
        info = _temporal_info(failure, "applicationFailureInfo") or {}
        type_ = info.get("type")
        self.type: str | None = type_ if isinstance(type_, str) else None
        self.non_retryable = info.get("nonRetryable") is True


def error_of_failure(
    failure: nexusrpc.Failure | None,
    *,
    status: int | None = None,
    state: str | None = None,
    retryable_header: str | None = None,
) -> HandlerError | OperationError:
    """Return the error that an answer or a completion reports.

    `failure` is the body, None where it was no Failure; `state` is `Nexus-Operation-State`;
    `retryable_header` is `Nexus-Request-Retryable`. A typed Failure decides whatever status and
    headers say. Any other one is an OperationError where the status is 424, or absent and the
    state given (a completion), and else the cause of a HandlerError whose type comes from the
    status. The causes become `__cause__`, and the Failure `original_failure`.

    Raises:
        InvalidWireValue: a typed Failure lacks the details that its type requires.

    Spec: SPEC.md#predefined-failure-types
    """
    if failure is not None:
        form = metadata_type(failure)
        if form == HANDLER_ERROR:
            return _with_causes(_handler_error(failure), failure)
        if form == OPERATION_ERROR:
            return _with_causes(_operation_error(failure), failure)
    completion = status is None and state in _STATES
    if completion or status == HTTPStatus.FAILED_DEPENDENCY:
        return _untyped_operation_error(failure, state)
    return _untyped_handler_error(failure, status, retryable_header)


def reported_failure(failure: nexusrpc.Failure) -> nexusrpc.Failure:
    """Return the Failure whose message counts: the cause, where the wrapper says so."""
    metadata = failure.metadata or {}
    unwrap = metadata.get("type") == OPERATION_ERROR and metadata.get(UNWRAP_ERROR) == "true"
    cause = failure.cause
    return cause if unwrap and cause is not None and cause.message else failure


def _handler_error(failure: nexusrpc.Failure) -> HandlerError:
    type_, override = _detail(failure, "type"), _detail(failure, "retryableOverride")
    if not isinstance(type_, str) or not type_:
        raise InvalidWireValue(
            "invalid Failure: a nexus.HandlerError needs details.type, for example INTERNAL"
        )
    if not isinstance(override, bool | None):
        raise InvalidWireValue("invalid Failure: details.retryableOverride is not a boolean")
    return HandlerError(
        failure.message,
        type=type_,
        retryable_override=override,
        stack_trace=failure.stack_trace,
        original_failure=failure,
    )


def _operation_error(failure: nexusrpc.Failure) -> OperationError:
    state = _detail(failure, "state")
    if not isinstance(state, str) or state not in _STATES:
        raise InvalidWireValue(
            "invalid Failure: a nexus.OperationError needs details.state, failed or canceled"
        )
    reported = reported_failure(failure)
    return OperationError(
        reported.message,
        state=_STATES[state],
        stack_trace=reported.stack_trace,
        original_failure=failure,
    )


def _untyped_operation_error(failure: nexusrpc.Failure | None, state: str | None) -> OperationError:
    known = _STATES.get(state or "")
    if known is None:
        canceled = _temporal_info(failure, "canceledFailureInfo") is not None
        known = OperationErrorState.CANCELED if canceled else OperationErrorState.FAILED
    if failure is None:
        return OperationError(f"operation {known.value}", state=known)
    error = OperationError(
        failure.message,
        state=known,
        stack_trace=failure.stack_trace,
        original_failure=failure,
    )
    if metadata_type(failure) == TEMPORAL_FAILURE:
        error.__cause__ = _exception(failure)
        return error
    return _with_causes(error, failure)


def _untyped_handler_error(
    failure: nexusrpc.Failure | None, status: int | None, retryable_header: str | None
) -> HandlerError:
    override = {"true": True, "false": False}.get((retryable_header or "").strip().lower())
    info = _temporal_info(failure, "nexusHandlerFailureInfo") or {}
    if failure is not None and isinstance(type_ := info.get("type"), str) and type_:
        error = HandlerError(
            failure.message,
            type=type_,
            retryable_override=_RETRY_BEHAVIORS.get(str(info.get("retryBehavior")), override),
            stack_trace=failure.stack_trace,
            original_failure=failure,
        )
        return _with_causes(error, failure)
    error = HandlerError(
        _status_text(status),
        type=UNKNOWN if status is None else type_of_status(status),
        retryable_override=override,
        original_failure=failure,
    )
    error.__cause__ = None if failure is None else _exception(failure)
    return error


def _with_causes(error: _Error, failure: nexusrpc.Failure) -> _Error:
    cause = _cause_of(failure)
    error.__cause__ = None if cause is None else _exception(cause)
    return error


def _exception(failure: nexusrpc.Failure) -> Exception:
    """Return the exception of a Failure, with its causes chained."""
    first = outer = _single(failure)
    cause = _cause_of(failure)
    for _ in range(MAX_CAUSES):
        if cause is None:
            break
        outer.__cause__ = inner = _single(cause)
        outer, cause = inner, _cause_of(cause)
    return first


def _single(failure: nexusrpc.Failure) -> Exception:
    try:
        form = metadata_type(failure)
        if form == HANDLER_ERROR:
            return _handler_error(failure)
        if form == OPERATION_ERROR:
            return _operation_error(failure)
    except InvalidWireValue:
        # Only the outermost Failure decides anything: a malformed cause is shown as it is.
        pass
    return RemoteFailure(failure)


def _cause_of(failure: nexusrpc.Failure) -> nexusrpc.Failure | None:
    """Return a Failure's cause; the protobuf form may hold it among its details."""
    if failure.cause is not None or metadata_type(failure) != TEMPORAL_FAILURE:
        return failure.cause
    inner = _detail(failure, "cause")
    if not isinstance(inner, Mapping):
        return None
    message, stack_trace = inner.get("message"), inner.get("stackTrace")
    return Failure(
        message=message if isinstance(message, str) else "",
        stack_trace=stack_trace if isinstance(stack_trace, str) and stack_trace else None,
        metadata={"type": TEMPORAL_FAILURE},
        details={k: v for k, v in inner.items() if k not in ("message", "stackTrace")},
    )


def _detail(failure: nexusrpc.Failure, key: str) -> object:
    return failure.details.get(key) if isinstance(failure.details, Mapping) else None


def _temporal_info(failure: nexusrpc.Failure | None, key: str) -> Mapping[str, Any] | None:
    if failure is None or metadata_type(failure) != TEMPORAL_FAILURE:
        return None
    info = _detail(failure, key)
    return info if isinstance(info, Mapping) else None


def _status_text(status: int | None) -> str:
    if status is None:
        return "request failed"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        # 520 among them, which no registry knows.
        kind = ERROR_KINDS.get(type_of_status(status))
        return kind.type.replace("_", " ").capitalize() if kind else f"HTTP status {status}"
