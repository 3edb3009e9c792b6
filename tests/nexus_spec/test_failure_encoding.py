from typing import Any

import nexusrpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import HandlerError, OperationError, OperationErrorState

from nexus_spec import (
    ERROR_KINDS,
    Failure,
    InvalidWireValue,
    RemoteFailure,
    application_error,
    error_of_failure,
    failure_from_json,
    failure_of_error,
    failure_to_bytes,
    failure_to_json,
    parse_failure,
)

TEMPORAL = {"type": "temporal.api.failure.v1.Failure"}
HANDLER = {"type": "nexus.HandlerError"}
OPERATION = {"type": "nexus.OperationError"}
FAILED = OperationErrorState.FAILED


def written(error: HandlerError | OperationError) -> dict[str, Any]:
    return failure_to_json(failure_of_error(error))


def caused(error: HandlerError, cause: BaseException) -> HandlerError:
    error.__cause__ = cause
    return error


def test_handler_error_is_typed() -> None:
    assert written(HandlerError("m", type="NOT_FOUND")) == {
        "message": "m",
        "metadata": {"type": "nexus.HandlerError"},
        "details": {"type": "NOT_FOUND"},
    }
    error = HandlerError("m", type="TEAPOT", retryable_override=False, stack_trace="s")
    assert written(error) == {
        "message": "m",
        "stackTrace": "s",
        "metadata": {"type": "nexus.HandlerError"},
        "details": {"type": "TEAPOT", "retryableOverride": False},
    }


def test_operation_error_is_typed() -> None:
    assert written(OperationError("m", state=OperationErrorState.CANCELED)) == {
        "message": "m",
        "metadata": {"type": "nexus.OperationError"},
        "details": {"state": "canceled"},
    }


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from([*ERROR_KINDS]),
    st.none() | st.booleans(),
)
def test_handler_errors_survive_a_round_trip(
    message: str, type_: str, override: bool | None
) -> None:
    error = HandlerError(message, type=type_, retryable_override=override)
    data = failure_to_bytes(failure_of_error(error))
    again = error_of_failure(parse_failure(data), status=599)
    assert isinstance(again, HandlerError)
    assert (again.message, again.type, again.retryable_override) == (message, error.type, override)
    assert failure_to_bytes(failure_of_error(again)) == data


def test_causes_written_for_callers_are_told_and_others_only_named() -> None:
    secret = ValueError("password=hunter2")
    secret.__cause__ = InvalidWireValue("bad duration")
    middle = caused(HandlerError("middle", type="CONFLICT"), secret)
    outer = caused(HandlerError("outer", type="INTERNAL"), middle)
    failure = written(outer)
    assert failure["cause"]["details"] == {"type": "CONFLICT"}
    assert failure["cause"]["cause"]["message"] == "ValueError"
    assert failure["cause"]["cause"]["cause"] == {"message": "bad duration"}
    assert "hunter2" not in str(failure)


def test_exceptions_that_were_merely_being_handled_are_not_told() -> None:
    error = HandlerError("m", type="INTERNAL")
    error.__context__ = ValueError("hidden")
    assert "cause" not in written(error)


def test_endless_chains_end() -> None:
    one, two = HandlerError("a", type="INTERNAL"), HandlerError("b", type="INTERNAL")
    one.__cause__, two.__cause__ = two, one
    assert parse_failure(failure_to_bytes(failure_of_error(one))).message == "a"


@pytest.mark.parametrize(
    "document",
    [
        {
            "message": "m",
            "metadata": {"type": "nexus.HandlerError", "x": "y"},
            "details": {"type": "INTERNAL", "more": [1]},
            "stackTrace": "s",
            "cause": {"message": "c", "u": 1},
            "u": 2,
        },
        {
            "message": "operation error",
            "metadata": {"type": "nexus.OperationError", "unwrap-error": "true"},
            "details": {"state": "failed"},
            "cause": {"message": "c", "metadata": TEMPORAL, "details": {}},
        },
    ],
)
def test_errors_read_from_the_wire_are_told_as_they_came(document: dict[str, Any]) -> None:
    assert written(error_of_failure(failure_from_json(document))) == document


def test_untyped_answers_become_the_cause() -> None:
    document = {"message": "boom", "details": [1], "u": 2}
    failure = written(error_of_failure(failure_from_json(document), status=400))
    assert failure["details"] == {"type": "BAD_REQUEST"}
    assert failure["cause"] == document


def test_bare_outcomes_gain_their_type_and_keep_all_else() -> None:
    document = {
        "message": "boom",
        "metadata": {"k": "v"},
        "details": {"d": 1},
        "cause": {"message": "c"},
        "u": 2,
    }
    assert written(error_of_failure(failure_from_json(document), state="canceled")) == {
        **document,
        "metadata": {"k": "v", "type": "nexus.OperationError"},
        "details": {"d": 1, "state": "canceled"},
    }


def test_third_form_outcomes_are_wrapped_so_that_their_cause_is_reported() -> None:
    document = {"message": "boom", "metadata": TEMPORAL, "details": {"applicationFailureInfo": {}}}
    assert written(error_of_failure(failure_from_json(document), state="failed")) == {
        "message": "boom",
        "metadata": {"type": "nexus.OperationError", "unwrap-error": "true"},
        "details": {"state": "failed"},
        "cause": document,
    }


@pytest.mark.parametrize(
    "original",
    [
        nexusrpc.Failure("other", metadata=OPERATION, details={"state": "failed"}),
        nexusrpc.Failure("m", metadata=OPERATION, details={"state": "canceled"}),
        nexusrpc.Failure("m", metadata=OPERATION),
        nexusrpc.Failure("m", metadata=HANDLER, details={"type": "INTERNAL"}),
        nexusrpc.Failure("other"),
        Failure("m", details=[1]),
    ],
)
def test_original_failures_that_tell_something_else_are_causes(original: nexusrpc.Failure) -> None:
    failure = failure_of_error(OperationError("m", state=FAILED, original_failure=original))
    assert failure.details == {"state": "failed"}
    assert failure.cause is original


def test_original_failures_of_nexusrpc_are_told() -> None:
    original = nexusrpc.Failure(
        "m", metadata={"type": "nexus.OperationError"}, details={"state": "failed", "x": 1}
    )
    failure = failure_of_error(OperationError("m", state=FAILED, original_failure=original))
    assert isinstance(failure, Failure)
    assert failure.details == {"state": "failed", "x": 1}


def test_remote_failures_are_told_as_they_came() -> None:
    document = {"message": "c", "metadata": TEMPORAL, "details": {"u": 1}, "x": 2}
    cause = RemoteFailure(failure_from_json(document))
    assert written(caused(HandlerError("m", type="INTERNAL"), cause))["cause"] == document


def test_application_error_is_what_temporal_unwraps() -> None:
    error = application_error("out of stock", type="Stock", non_retryable=True)
    assert written(error) == {
        "message": "out of stock",
        "metadata": {"type": "nexus.OperationError", "unwrap-error": "true"},
        "details": {"state": "failed"},
        "cause": {
            "message": "out of stock",
            "metadata": TEMPORAL,
            "details": {"applicationFailureInfo": {"type": "Stock", "nonRetryable": True}},
        },
    }
    assert isinstance(error.__cause__, RemoteFailure)
    assert (error.__cause__.type, error.__cause__.non_retryable) == ("Stock", True)
    retryable = written(application_error("m", type="T"))
    assert retryable["cause"]["details"] == {"applicationFailureInfo": {"type": "T"}}
