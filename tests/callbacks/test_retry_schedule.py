import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callbacks.errors import AddressRefused, HeaderRefused, UrlRefused
from callbacks.retry_schedule import Decision, RetryPolicy, Verdict, judge, parse_retry_after
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from nexus_spec import Headers

NOW = datetime(2026, 11, 22, 15, 4, 18, tzinfo=UTC)
HOUR = timedelta(hours=1)


def answer(status: int, body: object = b"", **headers: str) -> SentResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return SentResponse(status, Headers.from_pairs(pairs), data, "127.0.0.1:80")


def handler_error(type: str, override: bool | None = None) -> dict[str, Any]:
    details: dict[str, Any] = {"type": type}
    if override is not None:
        details["retryableOverride"] = override
    return {"message": "no", "metadata": {"type": "nexus.HandlerError"}, "details": details}


def decide(response: SentResponse, *, previous_unknown: bool = False) -> Decision:
    return judge(response, previous_unknown=previous_unknown, now=NOW).decision


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    verdict = judge(answer(status), previous_unknown=False, now=NOW)
    assert verdict == Verdict(decision=Decision.DELIVERED)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 501])
def test_permanent_statuses(status: int) -> None:
    assert decide(answer(status)) is Decision.PERMANENT


@pytest.mark.parametrize("status", [101, 301, 302, 307, 405, 408, 413, 422, 424, 425, 429])
def test_other_statuses_are_retried(status: int) -> None:
    verdict = judge(answer(status), previous_unknown=True, now=NOW)
    assert verdict.decision is Decision.RETRY
    assert not verdict.destination_failed
    assert not verdict.outcome_unknown
    assert str(status) in verdict.reason


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 599])
def test_5xx_is_retried_and_a_failure_of_the_destination(status: int) -> None:
    verdict = judge(answer(status), previous_unknown=False, now=NOW)
    assert verdict.decision is Decision.RETRY
    assert verdict.destination_failed


TEMPORAL_HANDLER_FAILURE = {
    "message": "no",
    "metadata": {"type": "temporal.api.failure.v1.Failure"},
    "details": {
        "nexusHandlerFailureInfo": {
            "type": "INTERNAL",
            "retryBehavior": "NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_NON_RETRYABLE",
        }
    },
}
TEMPORAL_APPLICATION_FAILURE = {
    "message": "no",
    "metadata": {"type": "temporal.api.failure.v1.Failure"},
    "details": {"applicationFailureInfo": {"type": "X", "nonRetryable": True}},
}


@pytest.mark.parametrize(
    ("response", "decision"),
    [
        # a typed body's type decides, whatever the status
        (answer(422, handler_error("BAD_REQUEST")), Decision.PERMANENT),
        (answer(500, handler_error("NOT_FOUND")), Decision.PERMANENT),
        (answer(400, handler_error("UNAVAILABLE")), Decision.RETRY),
        (answer(404, handler_error("MADE_UP")), Decision.RETRY),
        # its override decides before its type
        (answer(400, handler_error("BAD_REQUEST", True)), Decision.RETRY),
        (answer(500, handler_error("INTERNAL", False)), Decision.PERMANENT),
        (answer(500, TEMPORAL_HANDLER_FAILURE), Decision.PERMANENT),
        # the header decides only where the body does not
        (answer(400, nexus_request_retryable="true"), Decision.RETRY),
        (answer(503, nexus_request_retryable="False"), Decision.PERMANENT),
        (answer(400, nexus_request_retryable="perhaps"), Decision.PERMANENT),
        (
            answer(400, handler_error("BAD_REQUEST"), nexus_request_retryable="true"),
            Decision.PERMANENT,
        ),
        (answer(400, {"message": "bare"}, nexus_request_retryable="true"), Decision.RETRY),
        # a body that is no typed failure says nothing
        (answer(400, b"<html>"), Decision.PERMANENT),
        (answer(410, {"message": "bare"}), Decision.PERMANENT),
        (answer(500, b"\xff\x00"), Decision.RETRY),
        (answer(500, b'{"message":"cut o'), Decision.RETRY),
        (answer(400, {"metadata": {"type": "nexus.HandlerError"}}), Decision.PERMANENT),
        (answer(410, TEMPORAL_APPLICATION_FAILURE), Decision.PERMANENT),
        (
            answer(410, {**TEMPORAL_APPLICATION_FAILURE, "details": "text"}),
            Decision.PERMANENT,
        ),
        (
            answer(424, {"metadata": {"type": "nexus.OperationError"}, "details": {}}),
            Decision.RETRY,
        ),
        # no error at all, so nothing in it is about retrying
        (answer(302, nexus_request_retryable="false"), Decision.RETRY),
    ],
)
def test_what_the_body_and_the_header_say(response: SentResponse, decision: Decision) -> None:
    assert decide(response) is decision


def test_404_after_an_unknown_outcome_is_probably_delivered() -> None:
    typed = answer(404, handler_error("NOT_FOUND"))
    assert decide(answer(404), previous_unknown=True) is Decision.PROBABLY_DELIVERED
    assert decide(typed, previous_unknown=True) is Decision.PROBABLY_DELIVERED
    assert decide(answer(404), previous_unknown=False) is Decision.PERMANENT
    assert decide(answer(400), previous_unknown=True) is Decision.PERMANENT
    retryable = answer(404, handler_error("NOT_FOUND", True))
    assert decide(retryable, previous_unknown=True) is Decision.RETRY


def test_errors() -> None:
    def verdict(error: Unreachable | UnknownOutcome | UrlRefused | HeaderRefused) -> Verdict:
        return judge(error, previous_unknown=True, now=NOW)

    assert verdict(Unreachable("no route")) == Verdict(
        decision=Decision.RETRY, reason="no route", destination_failed=True
    )
    assert verdict(UnknownOutcome("reset")) == Verdict(
        decision=Decision.RETRY, reason="reset", destination_failed=True, outcome_unknown=True
    )
    assert verdict(AddressRefused("loopback")).decision is Decision.RETRY
    assert not verdict(AddressRefused("loopback")).outcome_unknown
    assert verdict(UrlRefused("no")).decision is Decision.PERMANENT
    assert verdict(HeaderRefused("no")).decision is Decision.PERMANENT


def test_retry_after_goes_with_a_retry_only() -> None:
    busy = judge(answer(429, retry_after="7"), previous_unknown=False, now=NOW)
    gone = judge(answer(410, retry_after="7"), previous_unknown=False, now=NOW)
    assert busy.retry_after == timedelta(seconds=7)
    assert gone.retry_after is None


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        ("120", timedelta(seconds=120)),
        (" 5\t", timedelta(seconds=5)),
        ("007", timedelta(seconds=7)),
        ("3600", HOUR),
        ("3601", HOUR),
        ("9" * 5000, HOUR),
        ("Sun, 22 Nov 2026 15:04:48 GMT", timedelta(seconds=30)),
        ("Sunday, 22-Nov-26 15:04:48 GMT", timedelta(seconds=30)),
        ("Sun, 22 Nov 2026 15:00:00 GMT", timedelta(0)),
        ("Sun, 22 Nov 2099 15:00:00 GMT", HOUR),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("1, 2", None),
        ("soon", None),
        ("\u0663", None),
        ("\u00b2", None),
        ("Sun, 99 Nov 2026 15:04:48 GMT", None),
        ("2026-11-22T15:04:48Z", None),
    ],
)
def test_parse_retry_after(value: str, wait: timedelta | None) -> None:
    assert parse_retry_after(value, NOW) == wait


RETRY_AFTERS = st.text() | st.from_regex(
    r"[A-Z][a-z]{2}, [0-9]{2} (Jan|Feb|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
)


@given(RETRY_AFTERS | st.integers().map(str), st.datetimes(timezones=st.just(UTC)))
@example("Mon, 01 Jan 0001 00:00:00 +2359", datetime.max.replace(tzinfo=UTC))
def test_parse_retry_after_is_total(value: str, now: datetime) -> None:
    wait = parse_retry_after(value, now)
    assert wait is None or timedelta(0) <= wait <= HOUR


@given(
    st.integers(min_value=100, max_value=999),
    st.binary(max_size=50) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps),
    st.text(max_size=20),
)
def test_judge_is_total(status: int, body: bytes | str, text: str) -> None:
    data = body if isinstance(body, bytes) else body.encode()
    response = answer(status, data, retry_after=text, nexus_request_retryable=text)
    assert decide(response) in Decision


def test_waits_double_up_to_an_hour() -> None:
    policy = RetryPolicy()
    waits = [policy.delay(attempts, 0.5).total_seconds() for attempts in range(1, 15)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]


def test_jitter_is_a_fifth_either_way() -> None:
    policy = RetryPolicy()
    assert policy.delay(1, 0.0) == timedelta(seconds=0.8)
    assert policy.delay(1, 1.0) == timedelta(seconds=1.2)
    assert policy.delay(50, 1.0) == timedelta(minutes=72)


@given(st.integers(min_value=-5, max_value=10**9), st.floats(min_value=0, max_value=1))
def test_any_number_of_attempts_has_a_wait(attempts: int, random: float) -> None:
    wait = RetryPolicy().delay(attempts, random)
    assert timedelta(seconds=0.8) <= wait <= timedelta(minutes=72)


def test_a_completion_is_given_up_when_the_next_attempt_would_come_too_late() -> None:
    policy = RetryPolicy()
    left = timedelta(minutes=30)
    assert policy.next_delay(1, 0.5, left=left) == timedelta(seconds=1)
    assert policy.next_delay(30, 0.5, left=left) is None
    assert policy.next_delay(1, 0.5, left=left, retry_after=HOUR) is None
    assert policy.next_delay(30, 0.5, left=HOUR) == HOUR


def test_retry_after_lengthens_a_wait_and_never_shortens_it() -> None:
    policy = RetryPolicy()
    left = timedelta(hours=72)
    later = timedelta(seconds=90)
    assert policy.next_delay(1, 0.5, left=left, retry_after=later) == later
    assert policy.next_delay(9, 0.5, left=left, retry_after=later) == timedelta(seconds=256)
