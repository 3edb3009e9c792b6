import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import HandlerError, OperationError, OperationErrorState

from nexus_spec import (
    Failure,
    InvalidWireValue,
    RemoteFailure,
    error_of_failure,
    failure_from_json,
    is_retryable,
)
from tests.nexus_spec.strategies import JSON_VALUES

TEMPORAL = {"type": "temporal.api.failure.v1.Failure"}
HANDLER = {"type": "nexus.HandlerError"}
OPERATION = {"type": "nexus.OperationError"}


def failure(message: str = "boom", **fields: Any) -> Failure:
    return failure_from_json({"message": message, **fields})


def handler_error(*args: Any, **kwargs: Any) -> HandlerError:
    error = error_of_failure(*args, **kwargs)
    assert isinstance(error, HandlerError)
    return error


def operation_error(*args: Any, **kwargs: Any) -> OperationError:
    error = error_of_failure(*args, **kwargs)
    assert isinstance(error, OperationError)
    return error


@pytest.mark.parametrize("status", [None, 400, 422, 424, 500])
def test_typed_handler_error_decides_whatever_status_and_headers_say(status: int | None) -> None:
    body = failure(metadata=HANDLER, details={"type": "BAD_REQUEST"}, stackTrace="s")
    error = handler_error(body, status=status, state="failed", retryable_header="true")
    assert (error.message, error.raw_error_type, error.stack_trace) == ("boom", "BAD_REQUEST", "s")
    assert error.original_failure is body
    assert not is_retryable(error)


@pytest.mark.parametrize("override", [True, False, None])
def test_override_is_read(override: bool | None) -> None:
    details = {"type": "CONFLICT", "retryableOverride": override}
    error = handler_error(failure(metadata=HANDLER, details=details))
    assert error.retryable_override is override


def test_unknown_types_are_kept() -> None:
    error = handler_error(failure(metadata=HANDLER, details={"type": "TEAPOT"}), status=400)
    assert error.raw_error_type == "TEAPOT"
    assert is_retryable(error)


@pytest.mark.parametrize("status", [None, 400, 424])
def test_typed_operation_error_beats_the_state_header(status: int | None) -> None:
    body = failure(metadata=OPERATION, details={"state": "canceled"})
    error = operation_error(body, status=status, state="failed")
    assert (error.message, error.state) == ("boom", OperationErrorState.CANCELED)


@pytest.mark.parametrize(
    ("metadata", "details"),
    [
        (HANDLER, None),
        (HANDLER, []),
        (HANDLER, {}),
        (HANDLER, {"type": 1}),
        (HANDLER, {"type": ""}),
        (HANDLER, {"state": "failed"}),
        (HANDLER, {"type": "INTERNAL", "retryableOverride": "true"}),
        (OPERATION, None),
        (OPERATION, "failed"),
        (OPERATION, {}),
        (OPERATION, {"state": "running"}),
        (OPERATION, {"state": ["failed"]}),
    ],
)
def test_typed_failures_without_their_details_are_refused(metadata: Any, details: Any) -> None:
    body = failure(metadata=metadata, details=details)
    with pytest.raises(InvalidWireValue, match="details"):
        error_of_failure(body, status=400, state="failed")


def test_unwrap_error_reports_the_cause() -> None:
    cause = {
        "message": "out of stock",
        "metadata": TEMPORAL,
        "details": {"applicationFailureInfo": {"type": "Stock", "nonRetryable": True}},
    }
    error = operation_error(
        failure(
            "operation error",
            metadata={**OPERATION, "unwrap-error": "true"},
            details={"state": "failed"},
            cause=cause,
        ),
        status=424,
    )
    assert error.message == "out of stock"
    assert isinstance(error.__cause__, RemoteFailure)
    assert (error.__cause__.type, error.__cause__.non_retryable) == ("Stock", True)


@pytest.mark.parametrize("flag", ["false", "True", ""])
def test_without_unwrap_error_the_wrapper_is_reported(flag: str) -> None:
    body = failure(
        metadata={**OPERATION, "unwrap-error": flag},
        details={"state": "failed"},
        cause={"message": "inner"},
    )
    assert operation_error(body).message == "boom"
    assert str(operation_error(body).__cause__) == "inner"


@pytest.mark.parametrize(
    ("status", "type_", "message"),
    [
        (400, "BAD_REQUEST", "Bad Request"),
        (404, "NOT_FOUND", "Not Found"),
        (422, "UNKNOWN", "Unprocessable Entity"),
        (502, "UNKNOWN", "Bad Gateway"),
        (520, "UPSTREAM_TIMEOUT", "Upstream timeout"),
        (599, "UNKNOWN", "HTTP status 599"),
        (None, "UNKNOWN", "request failed"),
    ],
)
def test_untyped_body_is_the_cause_of_what_the_status_says(
    status: int | None, type_: str, message: str
) -> None:
    error = handler_error(failure(metadata={"type": "own"}), status=status)
    assert (error.raw_error_type, error.message) == (type_, message)
    assert isinstance(error.__cause__, RemoteFailure)
    assert error.__cause__.message == "boom"
    nothing = handler_error(None, status=status)
    assert (nothing.raw_error_type, nothing.message) == (type_, message)
    assert nothing.__cause__ is None


@pytest.mark.parametrize(
    ("header", "override"),
    [("true", True), ("FALSE", False), (" true ", True), ("1", None), ("", None), (None, None)],
)
def test_deprecated_header_counts_for_untyped_bodies(
    header: str | None, override: bool | None
) -> None:
    assert handler_error(None, status=500, retryable_header=header).retryable_override is override


@pytest.mark.parametrize(
    ("state", "expected"),
    [("failed", "failed"), ("canceled", "canceled"), (None, "failed"), ("running", "failed")],
)
def test_bare_424_takes_its_state_from_the_header(state: str | None, expected: str) -> None:
    body = failure(stackTrace="s", cause={"message": "c"})
    error = operation_error(body, status=424, state=state)
    assert (error.state.value, error.message, error.stack_trace) == (expected, "boom", "s")
    assert str(error.__cause__) == "c"
    assert operation_error(None, status=424, state=state).message == f"operation {expected}"


def test_state_header_means_nothing_beside_other_statuses() -> None:
    assert handler_error(failure(), status=400, state="failed").raw_error_type == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("state", "info", "expected"),
    [
        (None, "canceledFailureInfo", "canceled"),
        (None, "applicationFailureInfo", "failed"),
        ("failed", "canceledFailureInfo", "failed"),
    ],
)
def test_third_form_as_an_outcome(state: str | None, info: str, expected: str) -> None:
    body = failure(metadata=TEMPORAL, details={info: {"type": "T"}})
    error = operation_error(body, status=424, state=state)
    assert error.state.value == expected
    assert isinstance(error.__cause__, RemoteFailure)
    assert error.__cause__.type == ("T" if info == "applicationFailureInfo" else None)


@pytest.mark.parametrize(
    ("behavior", "override"),
    [
        ("NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_RETRYABLE", True),
        ("NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_NON_RETRYABLE", False),
        ("NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_UNSPECIFIED", None),
        (None, None),
        ([], None),
    ],
)
def test_third_form_of_a_handler_error(behavior: Any, override: bool | None) -> None:
    info = {"type": "NOT_FOUND", "retryBehavior": behavior}
    body = failure(metadata=TEMPORAL, details={"nexusHandlerFailureInfo": info})
    error = handler_error(body, status=500)
    assert (error.raw_error_type, error.retryable_override) == ("NOT_FOUND", override)


def test_causes_inside_protobuf_details_are_found() -> None:
    inner = {"message": "inner", "stackTrace": "s", "applicationFailureInfo": {"type": "T"}}
    body = failure(metadata=TEMPORAL, details={"cause": {"message": "mid", "cause": inner}})
    error = handler_error(body, status=500)
    causes = []
    cause = error.__cause__
    while cause is not None:
        assert isinstance(cause, RemoteFailure)
        causes.append((cause.message, cause.stack_trace, cause.type))
        cause = cause.__cause__
    assert causes == [("boom", None, None), ("mid", None, None), ("inner", "s", "T")]


def test_causes_keep_their_types_and_malformed_ones_are_shown_as_they_are() -> None:
    malformed = {"message": "c", "metadata": HANDLER}
    canceled = {"metadata": OPERATION, "details": {"state": "canceled"}}
    middle = {"message": "b", **canceled, "cause": malformed}
    error = handler_error(failure(metadata=HANDLER, details={"type": "INTERNAL"}, cause=middle))
    assert isinstance(error.__cause__, OperationError)
    assert error.__cause__.state is OperationErrorState.CANCELED
    assert isinstance(error.__cause__.__cause__, RemoteFailure)


def test_endless_chains_end() -> None:
    body = failure(metadata=HANDLER, details={"type": "INTERNAL"})
    body.cause = body
    causes, cause = 0, handler_error(body).__cause__
    while cause is not None:
        causes, cause = causes + 1, cause.__cause__
    assert causes == 101


@given(
    st.fixed_dictionaries(
        {
            "message": st.just("m"),
            "metadata": st.sampled_from([HANDLER, OPERATION, TEMPORAL, {}]),
            "details": JSON_VALUES
            | st.dictionaries(
                st.sampled_from(
                    ["type", "state", "cause", "retryableOverride", "nexusHandlerFailureInfo"]
                ),
                JSON_VALUES | st.fixed_dictionaries({"type": JSON_VALUES}),
            ),
        }
    ),
    st.none() | st.integers(),
    st.none() | st.text(),
)
def test_any_failure_is_an_error_or_refused(
    body: Any, status: int | None, text: str | None
) -> None:
    parsed = failure_from_json(json.loads(json.dumps(body)))
    try:
        error = error_of_failure(parsed, status=status, state=text, retryable_header=text)
    except InvalidWireValue:
        return
    assert error.original_failure is parsed
