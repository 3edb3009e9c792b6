import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState

from clients import MalformedResponse, SentResponse, error_of_response
from clients.error_decoding import has_failure
from nexus_spec import Headers


def response(status: int, body: Any = b"", **headers: str) -> SentResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SentResponse(status, Headers(named), data, None)


TYPED = {
    "message": "slow down",
    "metadata": {"type": "nexus.HandlerError"},
    "details": {"type": "RESOURCE_EXHAUSTED", "retryableOverride": False},
    "cause": {"message": "the quota"},
}


def test_a_typed_failure_beats_the_status_and_the_header() -> None:
    error = error_of_response(response(422, TYPED, nexus_request_retryable="true"))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.RESOURCE_EXHAUSTED
    assert error.message == "slow down"
    assert error.retryable_override is False
    assert str(error.__cause__) == "the quota"


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "BAD_REQUEST"),
        (401, "UNAUTHENTICATED"),
        (404, "NOT_FOUND"),
        (503, "UNAVAILABLE"),
        (520, "UPSTREAM_TIMEOUT"),
        (502, "UNKNOWN"),
        (413, "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff"])
def test_without_a_failure_the_status_decides(status: int, type: str, body: bytes) -> None:
    error = error_of_response(response(status, body))
    assert isinstance(error, HandlerError)
    assert error.type.value == type
    assert error.message
    assert error.__cause__ is None


def test_a_bare_failure_is_the_cause() -> None:
    error = error_of_response(
        response(503, {"message": "deploying"}, nexus_request_retryable="false")
    )
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.UNAVAILABLE
    assert error.retryable_override is False
    assert str(error.__cause__) == "deploying"


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_424_bare(state: str) -> None:
    error = error_of_response(response(424, {"message": "x"}, nexus_operation_state=state))
    assert isinstance(error, OperationError)
    assert error.state is OperationErrorState(state)


def test_424_that_says_to_unwrap_reports_its_cause() -> None:
    body = {
        "message": "operation error",
        "metadata": {"type": "nexus.OperationError", "unwrap-error": "true"},
        "details": {"state": "failed"},
        "cause": {"message": "out of stock"},
    }
    error = error_of_response(response(424, body))
    assert isinstance(error, OperationError)
    assert error.message == "out of stock"


@pytest.mark.parametrize("body", [b"", b"<html>", [1], {"metadata": {"a": 1}}])
def test_424_must_be_a_failure(body: Any) -> None:
    error = error_of_response(response(424, body, nexus_operation_state="failed"))
    assert isinstance(error, MalformedResponse)
    assert error.status == 424


def test_a_state_header_means_nothing_under_another_status() -> None:
    error = error_of_response(response(500, {"message": "x"}, nexus_operation_state="failed"))
    assert isinstance(error, HandlerError)


def test_a_typed_failure_without_its_details_is_malformed() -> None:
    error = error_of_response(response(500, {"metadata": {"type": "nexus.HandlerError"}}))
    assert isinstance(error, MalformedResponse)


@pytest.mark.parametrize("status", [300, 301, 304, 307, 308])
def test_redirects_are_malformed(status: int) -> None:
    assert isinstance(error_of_response(response(status)), MalformedResponse)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_is_no_error(status: int) -> None:
    assert error_of_response(response(status, b"<html>")) is None


@given(st.integers(300, 599), st.binary(), st.text(alphabet="abc \xe9"))
def test_every_error_answer_becomes_an_error(status: int, body: bytes, header: str) -> None:
    error = error_of_response(response(status, body, nexus_operation_state=header))
    assert error is not None


@pytest.mark.parametrize(
    ("body", "says_something"),
    [(b"", False), (b"<p>", False), ({"detail": "Not Found"}, False), ({"message": "x"}, True)],
)
def test_a_framework_s_error_page_is_no_failure(body: Any, says_something: bool) -> None:
    assert has_failure(response(404, body)) is says_something
