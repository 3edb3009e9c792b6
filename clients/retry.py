"""Sending a request again: what the protocol allows, how soon, and until when."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nexusrpc import HandlerError

from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from nexus_spec import InvalidWireValue, is_retryable, parse_http_date
from nexus_spec.headers import Headers

__all__ = ["Clock", "RetryPolicy", "retry_after_seconds", "send_with_retries"]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to wait before a request is sent again, in seconds.

    The wait doubles from `first_delay` to `max_delay` and varies by `jitter` (a fraction, both
    ways), so that many callers do not return at the same moment. `max_attempts=1` never retries.
    """

    first_delay: float = 0.1
    max_delay: float = 10.0
    jitter: float = 0.2
    max_attempts: int = 1000

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.first_delay <= 0 or not 0 <= self.jitter < 1:
            raise ValueError(
                "a RetryPolicy needs max_attempts >= 1, first_delay > 0 and 0 <= jitter < 1"
            )

    def delay(self, attempt: int, uniform: float) -> float:
        """Return the seconds to wait after the `attempt`-th failure, the first being 1.

        `uniform` is a random number from 0 to 1.
        """
        # 2.0 ** 1024 overflows; long before, the cap holds.
        backoff = min(self.first_delay * 2.0 ** min(attempt - 1, 64), self.max_delay)
        return backoff * (1 + self.jitter * (2 * uniform - 1))


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time and chance as the retries see them; tests hand in their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    utcnow: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    uniform: Callable[[], float] = random.random


async def send_with_retries(
    send: Callable[[float], Awaitable[SentResponse]],
    judge: Callable[[SentResponse], Exception | None],
    *,
    deadline: float,
    policy: RetryPolicy,
    clock: Clock,
) -> SentResponse:
    """Send until `judge` finds nothing wrong, and return that answer.

    `send` gets the seconds left until `deadline` (on `clock.monotonic`). Sent again is what
    could not be delivered, what broke off, and what failed with an error that the protocol calls
    retryable; everything else is raised at once. `Retry-After` is honoured. When the next attempt
    would begin past the deadline the last error is raised as it is.

    Raises:
        Exception: what `judge` returned, or what `send` raised, last.

    Spec: SPEC.md#predefined-handler-errors
    """
    attempt = 0
    while True:
        attempt += 1
        at_least = 0.0
        error: Exception
        try:
            response = await send(max(deadline - clock.monotonic(), 0.0))
        except (Unreachable, UnknownOutcome) as failed:
            error = failed
        else:
            verdict = judge(response)
            if verdict is None:
                return response
            error = verdict
            at_least = retry_after_seconds(response.headers, clock.utcnow()) or 0.0
        delay = max(policy.delay(attempt, clock.uniform()), at_least)
        if (
            not _may_be_sent_again(error)
            or attempt >= policy.max_attempts
            or clock.monotonic() + delay >= deadline
        ):
            raise error
        await clock.sleep(delay)


def retry_after_seconds(headers: Headers, now: datetime) -> float | None:
    """Read `Retry-After`, a number of seconds or an HTTP date; None where it is neither.

    A date in the past is 0 seconds.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max((parse_http_date(value) - now).total_seconds(), 0.0)
    except InvalidWireValue:
        return None


def _may_be_sent_again(error: Exception) -> bool:
    match error:
        case HandlerError():
            return is_retryable(error)
        case Unreachable() | UnknownOutcome():
            return True
        case _:
            return False
