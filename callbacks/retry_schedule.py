"""When a completion is sent again, and when it is not: no clock, no I/O, no randomness."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from nexusrpc import HandlerError

from callbacks.errors import AddressRefused, CallbackError, NotSent
from clients.errors import ClientError, UnknownOutcome
from clients.sender import SentResponse
from nexus_spec import (
    Failure,
    InvalidWireValue,
    error_of_failure,
    is_retryable,
    parse_failure,
    parse_http_date,
)
from nexus_spec.headers import REQUEST_RETRYABLE

__all__ = [
    "PERMANENT_STATUSES",
    "Decision",
    "RetryPolicy",
    "Verdict",
    "judge",
    "parse_retry_after",
]

RETRY_AFTER_MOST = timedelta(hours=1)

# 410 is not a type of the specification, but says plainly that the receiver will not come back.
PERMANENT_STATUSES = frozenset({400, 401, 403, 404, 409, 410, 501})
"""Answers after which a completion is not sent again, unless the answer itself says otherwise."""


class Decision(StrEnum):
    """What one attempt means for its completion."""

    DELIVERED = "delivered"
    PROBABLY_DELIVERED = "probably_delivered"
    PERMANENT = "permanent"
    RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an attempt came to.

    Args:
        decision: what to do with the completion.
        reason: one line for the operator; empty when delivered.
        retry_after: how long the whole destination asked to be left alone; only with RETRY.
        outcome_unknown: the peer may have received this attempt; pass it to the next `judge` as
            `previous_unknown`.
        destination_failed: a failure of the destination and not of this one completion (network,
            timeout, 5xx): what a breaker counts.
    """

    decision: Decision
    reason: str = ""
    retry_after: timedelta | None = None
    outcome_unknown: bool = False
    destination_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to wait between attempts: `first` doubling up to `cap`, until `max_age`.

    Args:
        first: the wait after the first attempt.
        cap: the longest wait, before jitter.
        jitter: the share by which a wait is shortened or lengthened at random, 0 to 1.
        max_age: how old a completion may be when it is still sent again.
    """

    first: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(hours=1)
    jitter: float = 0.2
    max_age: timedelta = timedelta(hours=72)

    def delay(self, attempts: int, random: float) -> timedelta:
        """Return the wait after so many attempts (1 or more).

        Args:
            attempts: how many have been made.
            random: a number from 0 to 1; 0.5 stands for no jitter.
        """
        # Bounded before the power is taken: 2**2000 seconds are no timedelta.
        doublings = min(max(attempts - 1, 0), 64)
        wait_seconds = min(self.first.total_seconds() * 2**doublings, self.cap.total_seconds())
        return timedelta(seconds=wait_seconds * (1 + self.jitter * (2 * random - 1)))

    def next_delay(
        self, attempts: int, random: float, *, left: timedelta, retry_after: timedelta | None = None
    ) -> timedelta | None:
        """Return the wait before the next attempt, or None when it would come too late.

        Args:
            attempts: how many have been made.
            random: a number from 0 to 1.
            left: for how long delivery may still be tried.
            retry_after: what the destination asked for; never shortens the wait.
        """
        wait = max(self.delay(attempts, random), retry_after or timedelta(0))
        return wait if wait <= left else None


def judge(
    outcome: SentResponse | ClientError | CallbackError,
    *,
    previous_unknown: bool,
    now: datetime,
    permanent_statuses: Set[int] = PERMANENT_STATUSES,
) -> Verdict:
    """Decide what an answer, or the lack of one, means for a completion.

    2xx is delivered. 400, 401, 403, 404, 409, 410 and 501 are permanent and everything else is
    retried, unless a typed HandlerError in the body, or else the deprecated header
    `Nexus-Request-Retryable`, says otherwise. A permanent 404 after an attempt of unknown outcome
    is probably the answer to the second copy of a completion that arrived.

    A body that was cut off at the sender's cap cannot be read as a failure: its status decides.

    Args:
        outcome: what the sender returned or raised. A URL or header that is refused as text can
            never be sent and is permanent; an address that is refused is retried, because a name's
            addresses change. What this process had nothing to send with
            is retried, too, and says nothing of its destination.
        previous_unknown: an earlier attempt may have been received.
        now: the current time, for a `Retry-After` that is a date.
        permanent_statuses: other answers that count as permanent by themselves.

    Spec: SPEC.md#callback-urls
    """
    if not isinstance(outcome, SentResponse):
        return _judge_error(outcome)
    status = outcome.status
    if 200 <= status < 300:
        return Verdict(decision=Decision.DELIVERED)
    reason = f"answered {status}"
    if _is_retryable(outcome, permanent_statuses):
        retry_after = outcome.headers.get("retry-after")
        return Verdict(
            decision=Decision.RETRY,
            reason=reason,
            retry_after=None if retry_after is None else parse_retry_after(retry_after, now),
            destination_failed=status >= 500,
        )
    if status == 404 and previous_unknown:
        return Verdict(
            decision=Decision.PROBABLY_DELIVERED,
            reason=f"{reason} after an attempt of unknown outcome",
        )
    return Verdict(decision=Decision.PERMANENT, reason=reason)


def parse_retry_after(value: str, now: datetime) -> timedelta | None:
    """Return how long a `Retry-After` asks to wait, from 0 to 1 hour, or None if it says nothing.

    Reads whole seconds or an HTTP date (a past one is 0). Total: any text has an answer. The hour
    is the longest wait between attempts, so that a destination cannot park itself for days.

    Args:
        value: the header's text.
        now: the current time, aware.

    Spec: RFC 9110, section 10.2.3
    """
    text = value.strip(" \t")
    if text.isascii() and text.isdecimal():
        # Nine digits are 31 years; `int` refuses strings of thousands of digits.
        seconds = int(text) if len(text) <= 9 else RETRY_AFTER_MOST.total_seconds()
        return min(timedelta(seconds=seconds), RETRY_AFTER_MOST)
    try:
        wait = parse_http_date(text) - now
    except InvalidWireValue:
        return None
    return min(max(wait, timedelta(0)), RETRY_AFTER_MOST)


def _judge_error(error: ClientError | CallbackError) -> Verdict:
    if isinstance(error, NotSent):
        return Verdict(decision=Decision.RETRY, reason=str(error))
    if isinstance(error, CallbackError) and not isinstance(error, AddressRefused):
        return Verdict(decision=Decision.PERMANENT, reason=str(error))
    return Verdict(
        decision=Decision.RETRY,
        reason=str(error),
        outcome_unknown=isinstance(error, UnknownOutcome),
        destination_failed=True,
    )


def _is_retryable(response: SentResponse, permanent_statuses: Set[int]) -> bool:
    if response.status >= 400:
        error = _typed_error(response)
        if error is not None:
            return is_retryable(error)
        header = response.headers.get(REQUEST_RETRYABLE, "").lower()
        if header in {"true", "false"}:
            return header == "true"
    return response.status not in permanent_statuses


def _typed_error(response: SentResponse) -> HandlerError | None:
    """Read the body's HandlerError, or None where only the status says what went wrong."""
    try:
        failure = parse_failure(response.body)
        if not _is_handler_failure(failure):
            return None
        error = error_of_failure(failure, status=response.status)
    except InvalidWireValue:
        return None
    return error if isinstance(error, HandlerError) else None


def _is_handler_failure(failure: Failure) -> bool:
    match (failure.metadata or {}).get("type"):
        case "nexus.HandlerError":
            return True
        case "temporal.api.failure.v1.Failure":  # Temporal's own form, a worker's error within
            details: object = failure.details  # any JSON
            return isinstance(details, Mapping) and "nexusHandlerFailureInfo" in details
        case _:
            return False
