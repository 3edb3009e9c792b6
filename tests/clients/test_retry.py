from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import HandlerError, HandlerErrorType

from clients import (
    ClientError,
    MalformedResponse,
    RetryPolicy,
    SentResponse,
    UnknownOutcome,
    Unreachable,
    retry_after_seconds,
)
from clients.retry import send_with_retries
from nexus_spec import Headers, format_http_date
from tests.clients.fake_clock import BEGINNING, FakeClock

pytestmark = pytest.mark.anyio

POLICY = RetryPolicy(first_delay=1, max_delay=8, jitter=0.5)
OK = SentResponse(200, Headers(), b"", None)


class Peer:
    """Fails with each of the errors in turn, then answers."""

    def __init__(self, *errors: Exception, retry_after: str | None = None) -> None:
        self.errors = list(errors)
        self.left: list[float] = []
        self.headers = Headers({"retry-after": retry_after} if retry_after else {})

    async def send(self, left: float) -> SentResponse:
        self.left.append(left)
        if self.errors and isinstance(self.errors[0], Unreachable | UnknownOutcome):
            raise self.errors.pop(0)
        return SentResponse(200, self.headers, b"", None)

    def judge(self, response: SentResponse) -> Exception | None:
        return self.errors.pop(0) if self.errors else None


def handler_error(type: HandlerErrorType, override: bool | None = None) -> HandlerError:
    return HandlerError("no", type=type, retryable_override=override)


async def call(
    peer: Peer, fake: FakeClock, deadline: float = 1000, policy: RetryPolicy = POLICY
) -> SentResponse:
    return await send_with_retries(
        peer.send, peer.judge, deadline=deadline, policy=policy, clock=fake.clock
    )


RETRYABLE: list[Callable[[], Exception]] = [
    lambda: Unreachable("x"),
    lambda: UnknownOutcome("x"),
    lambda: handler_error(HandlerErrorType.UNAVAILABLE),
    lambda: handler_error(HandlerErrorType.UNKNOWN),
    lambda: handler_error(HandlerErrorType.BAD_REQUEST, override=True),
]
FINAL: list[Callable[[], Exception]] = [
    lambda: handler_error(HandlerErrorType.BAD_REQUEST),
    lambda: handler_error(HandlerErrorType.UNAVAILABLE, override=False),
    lambda: MalformedResponse("x"),
    lambda: ClientError("x"),
]


@pytest.mark.parametrize("error", RETRYABLE)
async def test_what_may_be_repeated_is_repeated(
    error: Callable[[], Exception], fake_clock: FakeClock
) -> None:
    peer = Peer(error(), error())
    assert (await call(peer, fake_clock)).status == 200
    assert fake_clock.sleeps == [1, 2]
    assert peer.left == [1000, 999, 997]


@pytest.mark.parametrize("error", FINAL)
async def test_what_is_final_is_raised_at_once(
    error: Callable[[], Exception], fake_clock: FakeClock
) -> None:
    expected = error()
    with pytest.raises(type(expected)) as caught:
        await call(Peer(expected), fake_clock)
    assert caught.value is expected
    assert fake_clock.sleeps == []


async def test_the_wait_doubles_up_to_its_cap(fake_clock: FakeClock) -> None:
    await call(Peer(*(Unreachable("x") for _ in range(6))), fake_clock)
    assert fake_clock.sleeps == [1, 2, 4, 8, 8, 8]


async def test_no_attempt_begins_past_the_deadline(fake_clock: FakeClock) -> None:
    errors = [Unreachable(str(n)) for n in range(9)]
    with pytest.raises(Unreachable, match="2"):
        await call(Peer(*errors), fake_clock, deadline=7)
    assert fake_clock.sleeps == [1, 2]


async def test_attempts_are_counted(fake_clock: FakeClock) -> None:
    peer = Peer(*(Unreachable("x") for _ in range(9)))
    with pytest.raises(Unreachable):
        await call(peer, fake_clock, policy=RetryPolicy(max_attempts=3))
    assert len(peer.left) == 3


@pytest.mark.parametrize(
    "value", ["30", format_http_date(BEGINNING + timedelta(seconds=30))], ids=["seconds", "date"]
)
async def test_retry_after_is_honoured(value: str, fake_clock: FakeClock) -> None:
    error = handler_error(HandlerErrorType.RESOURCE_EXHAUSTED)
    await call(Peer(error, retry_after=value), fake_clock)
    assert fake_clock.sleeps == [30]


async def test_a_retry_after_past_the_deadline_is_not_waited_for(fake_clock: FakeClock) -> None:
    error = handler_error(HandlerErrorType.RESOURCE_EXHAUSTED)
    with pytest.raises(HandlerError):
        await call(Peer(error, retry_after="30"), fake_clock, deadline=20)
    assert fake_clock.sleeps == []


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_retry_after_is_read_or_ignored(value: str) -> None:
    seconds = retry_after_seconds(Headers({"Retry-After": value}), BEGINNING)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), (" 7 ", 7), ("-1", None), ("1.5", None), ("\u0663", None), ("9" * 4301, None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(Headers({"Retry-After": value}), BEGINNING) == seconds


def test_a_date_in_the_past_is_now() -> None:
    past = format_http_date(BEGINNING - timedelta(days=1))
    assert retry_after_seconds(Headers({"Retry-After": past}), BEGINNING) == 0


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_every_delay_is_within_the_cap_and_its_jitter(attempt: int, uniform: float) -> None:
    assert 0.5 <= POLICY.delay(attempt, uniform) <= 12


@pytest.mark.parametrize(
    "arguments", [{"max_attempts": 0}, {"first_delay": 0}, {"jitter": 1}, {"jitter": -0.1}]
)
def test_senseless_policies_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="RetryPolicy"):
        RetryPolicy(**arguments)  # type: ignore[arg-type]
