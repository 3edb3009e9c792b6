from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import Content, HandlerError, Link, OperationErrorState

from nexus_spec import (
    Completion,
    Failure,
    Headers,
    InvalidWireValue,
    OperationState,
    parse_completion,
    parse_failure,
    render_completion,
)
from tests.nexus_spec.strategies import TOKENS

START = datetime(2026, 11, 22, 15, 4, 18, tzinfo=UTC)
CLOSE = START + timedelta(milliseconds=1402)
TIMES: dict[str, Any] = {"start_time": START, "close_time": CLOSE}
JSON = {"content-type": "application/json"}
LINK = Link(url="my:///a?b=c", type="com.example.R")
TYPED = Failure(message="m", metadata={"type": "nexus.OperationError"}, details={"state": "failed"})
FROM_TEMPORAL = Headers(
    {
        "content-type": "application/json",
        "nexus-operation-state": "canceled",
        "nexus-operation-token": "eyJ0",
        "nexus-operation-start-time": "Sun, 22 Nov 2026 15:04:18 GMT",
        "nexus-operation-close-time": "2026-11-22T15:04:19.402390990Z",
        "token": "t0k",
    }
)


def failed(failure: Failure | None, state: OperationState = OperationState.FAILED) -> Completion:
    return Completion(state=state, token="t", failure=failure, **TIMES)


def reread(completion: Completion) -> Completion:
    headers, body = render_completion(completion)
    return parse_completion(Headers.from_pairs(headers), body)


def test_succeeded_completion_on_the_wire() -> None:
    content = Content({**JSON, "Content-Length": "2", "content-language": "en"}, b"{}")
    completion = Completion(
        state=OperationState.SUCCEEDED,
        token="t0k",
        start_time=START.astimezone(timezone(timedelta(hours=1))),
        close_time=CLOSE,
        links=(LINK, LINK),
        content=content,
    )
    assert render_completion(completion) == (
        [
            ("Nexus-Operation-State", "succeeded"),
            ("Nexus-Operation-Token", "t0k"),
            ("Nexus-Operation-Start-Time", "Sun, 22 Nov 2026 15:04:18 GMT"),
            ("Nexus-Operation-Close-Time", "2026-11-22T15:04:19.402Z"),
            ("Nexus-Link", '<my:///a?b=c>; type="com.example.R"'),
            ("Nexus-Link", '<my:///a?b=c>; type="com.example.R"'),
            ("Content-Type", "application/json"),
        ],
        b"{}",
    )


def test_failed_completion_on_the_wire() -> None:
    headers, body = render_completion(failed(TYPED))
    assert headers[0] == ("Nexus-Operation-State", "failed")
    assert headers[-1] == ("Content-Type", "application/json")
    assert parse_failure(body) == TYPED


@given(
    TOKENS,
    st.tuples(st.none() | st.just(START), st.none() | st.just(CLOSE)),
    st.lists(st.just(LINK), max_size=3),
    st.binary(),
    st.sampled_from([{}, JSON, {"content-encoding": "gzip", **JSON}]),
)
def test_succeeded_completions_survive_a_round_trip(
    token: str,
    times: tuple[datetime | None, datetime | None],
    links: list[Link],
    data: bytes,
    headers: dict[str, str],
) -> None:
    completion = Completion(
        state=OperationState.SUCCEEDED,
        token=token,
        start_time=times[0],
        close_time=times[1],
        links=tuple(links),
        content=Content(headers, data),
    )
    assert reread(completion) == completion


def test_null_result_and_absent_content() -> None:
    bare = Completion(state=OperationState.SUCCEEDED, token="", start_time=None, close_time=None)
    assert render_completion(bare) == ([("Nexus-Operation-State", "succeeded")], b"")
    assert reread(bare).content == Content({}, b"")


def test_reads_what_temporal_sends() -> None:
    body = (
        b'{"message":"operation canceled","metadata":{"type":"temporal.api.failure.v1.Failure"},'
        b'"details":{"canceledFailureInfo":{}}}'
    )
    completion = parse_completion(FROM_TEMPORAL, body)
    assert completion.state is OperationState.CANCELED
    assert (completion.token, completion.start_time) == ("eyJ0", START)
    assert completion.close_time == CLOSE.replace(microsecond=402_390)
    error = completion.error()
    assert (error.message, error.state) == ("operation canceled", OperationErrorState.CANCELED)


@pytest.mark.parametrize(
    ("body", "state", "message"),
    [
        (b"{}", "canceled", ""),
        (b'{"message":"bare"}', "canceled", "bare"),
        (
            b'{"message":"m","metadata":{"type":"nexus.OperationError"},"details":{"state":"failed"}}',
            "failed",
            "m",
        ),
        (
            b'{"message":"h","metadata":{"type":"nexus.HandlerError"},"details":{"type":"INTERNAL"}}',
            "canceled",
            "h",
        ),
    ],
)
def test_typed_body_beats_the_header(body: bytes, state: str, message: str) -> None:
    completion = parse_completion(FROM_TEMPORAL, body)
    assert completion.state.value == state
    assert completion.error().state.value == state
    assert completion.error().message == message


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ({"nexus-operation-state": None}, b"{}"),
        ({"nexus-operation-state": "running"}, b"{}"),
        ({"nexus-operation-state": "Failed"}, b"{}"),
        ({"nexus-operation-start-time": "Sun, 22 Nov 2026 15:04:18"}, b"{}"),
        ({"nexus-operation-close-time": "2026-11-22"}, b"{}"),
        ({"nexus-operation-token": "t" * 4097}, b"{}"),
        ({"nexus-link": "<a:b>"}, b"{}"),
        ({}, b""),
        ({}, b"[]"),
        ({}, b'{"message":1}'),
        ({}, b'{"cause":' * 100_000),
        ({}, b'{"metadata":{"type":"nexus.OperationError"}}'),
        ({}, b'{"metadata":{"type":"nexus.OperationError"},"details":{"state":"succeeded"}}'),
        ({}, b'{"metadata":{"type":"nexus.HandlerError"},"details":{}}'),
    ],
)
def test_refuses_malformed_completions(changed: dict[str, str | None], body: bytes) -> None:
    headers = {k: v for k, v in {**FROM_TEMPORAL, **changed}.items() if v is not None}
    with pytest.raises(InvalidWireValue):
        parse_completion(Headers(headers), body)


@given(
    st.dictionaries(
        st.sampled_from([*FROM_TEMPORAL, "nexus-link"]),
        st.text() | st.sampled_from([*FROM_TEMPORAL.values(), "succeeded", "failed"]),
    ),
    st.binary() | st.just(b"{}"),
)
def test_any_message_is_a_completion_or_refused(headers: dict[str, str], body: bytes) -> None:
    try:
        completion = parse_completion(Headers(headers), body)
    except InvalidWireValue:
        return
    if completion.state is not OperationState.SUCCEEDED:
        completion.error()
    again = reread(completion)
    assert (again.state, again.token) == (completion.state, completion.token)


@pytest.mark.parametrize("state", [OperationState.FAILED, OperationState.CANCELED])
@pytest.mark.parametrize(
    "failure",
    [
        None,
        Failure(message=""),
        Failure(message="bare", details=[1]),
        TYPED,
        Failure(message="h", metadata={"type": "nexus.HandlerError"}, details={"type": "INTERNAL"}),
        Failure(message="t", metadata={"type": "temporal.api.failure.v1.Failure"}),
    ],
)
def test_every_failure_is_sent_typed_with_the_state_of_the_completion(
    failure: Failure | None, state: OperationState
) -> None:
    completion = failed(failure, state)
    headers, body = render_completion(completion)
    sent = parse_failure(body)
    assert headers[0] == ("Nexus-Operation-State", state.value)
    assert sent.metadata is not None
    assert sent.metadata["type"] == "nexus.OperationError"
    assert sent.details["state"] == state.value
    assert reread(completion).error().message == completion.error().message


def test_handler_error_that_ended_an_operation_is_its_cause() -> None:
    failure = Failure(
        message="h", metadata={"type": "nexus.HandlerError"}, details={"type": "INTERNAL"}
    )
    error = failed(failure).error()
    assert isinstance(error.__cause__, HandlerError)


def test_combinations_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="succeeded, failed or canceled"):
        failed(None, OperationState.RUNNING)
    with pytest.raises(ValueError, match="content if it succeeded"):
        failed(TYPED, OperationState.SUCCEEDED)
    with pytest.raises(ValueError, match="content if it succeeded"):
        Completion(state=OperationState.FAILED, token="t", content=Content({}, b""), **TIMES)
    with pytest.raises(ValueError, match="no error"):
        failed(None, OperationState.SUCCEEDED).error()


def test_tokens_that_cannot_be_sent_are_refused() -> None:
    completion = Completion(state=OperationState.SUCCEEDED, token="a\n", **TIMES)
    with pytest.raises(InvalidWireValue, match="token"):
        render_completion(completion)
    assert "a\\n" not in repr(completion)
