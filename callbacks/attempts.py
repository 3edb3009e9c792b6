"""One attempt to deliver a completion, and the record of what it brought."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from callbacks.database import Database, DatabaseClosed, persist
from callbacks.dead_letters import Notice
from callbacks.delivery_rules import DeliveryRules
from callbacks.errors import CallbackError, NotSent
from callbacks.holds import Holds
from callbacks.outbox import Delivery
from callbacks.outcomes import Arrived, Attempt, Delivered, GiveUp, Retry
from callbacks.retry_schedule import Decision, Verdict, judge
from clients.errors import ClientError, UnknownOutcome
from clients.sender import Sender, SentResponse

logger = logging.getLogger(__name__)

Outcome = SentResponse | ClientError | CallbackError
Sign = Callable[[Delivery, int], Awaitable[Sequence[tuple[str, str]]]]
"""Returns the headers that sign an attempt, made at a time in milliseconds since 1970."""
Post = Callable[[Delivery, Sequence[tuple[str, str]]], Awaitable[Outcome]]
AroundAttempt = Callable[[Delivery, Post], Awaitable[Outcome]]

_EXCERPT_CHARACTERS = 500
_REASON_CHARACTERS = 500


@dataclass
class DeliveryStats:
    """Numbers since the process began."""

    attempts: int = 0
    delivered: int = 0
    retried: int = 0
    failed: int = 0


class Attempts:
    """Makes attempts.

    Args:
        database: Where the outbox is.
        sender: Posts; the egress guard is inside.
        notice_sender: Likewise, the notices to the operator, who chose their URL.
        rules: When a failed attempt is repeated, and for how long.
        holds: Told what attempts say about their destinations.
        notice: How the operator is told of a dead letter.
        sign: Signs each attempt; none is signed without it.
        recorded: Told of each delivery whose outcome is in the database, or never will be.
        due_at: Told when a delivery is due again, in milliseconds since 1970.
        observe: Told how long each attempt took, in seconds.
        around: Wraps an attempt, for tracing: given the delivery and the attempt itself.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        sender: Sender,
        notice_sender: Sender,
        rules: DeliveryRules,
        holds: Holds,
        *,
        notice: Notice | None,
        sign: Sign | None,
        recorded: Callable[[Delivery], None],
        due_at: Callable[[int], None],
        observe: Callable[[float], None] | None,
        around: AroundAttempt | None,
        now: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._sender = sender
        self._notice_sender = notice_sender
        self._rules = rules
        self._holds = holds
        self._notice = notice
        self._sign = sign
        self._recorded = recorded
        self._due_at = due_at
        self._observe = observe
        self._around = around
        self._now = now
        self._draw = draw
        self._loop = asyncio.get_running_loop()
        self._arrived: list[Delivery] = []  # in this turn of the loop
        self.writing: set[asyncio.Future[None]] = set()
        self.stats = DeliveryStats()

    async def make(self, delivery: Delivery) -> None:
        """Send a completion once; what came of it is written, however long that takes.

        Raises:
            DatabaseClosed: The process is ending. The delivery stays in flight, and its attempt is
                repeated by another.
        """
        started_at = self._now()
        began = time.perf_counter()
        try:
            if self._around is None:
                outcome = await self._post(delivery, delivery.headers)
            else:
                outcome = await self._around(delivery, self._post)
        except Exception as error:
            # Tried again like any other failure: a row must never be left in flight by nobody.
            logger.exception("delivery broke", extra={"token": delivery.token})
            outcome = UnknownOutcome(f"the attempt broke: {type(error).__name__}")
        seconds = time.perf_counter() - began
        self.stats.attempts += 1
        if self._observe is not None:
            self._observe(seconds)
        if (
            isinstance(outcome, SentResponse)
            and 200 <= outcome.status < 300
            and delivery.attempt == 1
        ):
            # The common case leaves no attempt row, and nobody waits for the write.
            self.stats.delivered += 1
            self._holds.answered(delivery.destination, probe=delivery.probe)
            self._arrived.append(delivery)
            if len(self._arrived) == 1:
                self._loop.call_soon(self._write_arrived)
            return
        now = self._now()
        verdict = judge(
            outcome,
            previous_unknown=delivery.outcome_unknown,
            now=datetime.fromtimestamp(now / 1000, UTC),
            permanent_statuses=self._rules.of(delivery.destination).permanent_statuses,
        )
        self._tell_of_destination(delivery, outcome, verdict, now)
        attempt = _describe(delivery, outcome, verdict, started_at, seconds)
        await self._settle(delivery, verdict, attempt, now)
        self._recorded(delivery)

    def _tell_of_destination(
        self, delivery: Delivery, outcome: Outcome, verdict: Verdict, now: int
    ) -> None:
        not_before = None
        if verdict.retry_after is not None:
            not_before = now + round(verdict.retry_after.total_seconds() * 1000)
        if verdict.destination_failed:
            self._holds.failed(delivery.destination, probe=delivery.probe, not_before=not_before)
        elif isinstance(outcome, SentResponse):
            self._holds.answered(delivery.destination, probe=delivery.probe, not_before=not_before)
        elif delivery.probe:
            self._holds.came_to_nothing(delivery.destination)

    async def _post(self, delivery: Delivery, headers: Sequence[tuple[str, str]]) -> Outcome:
        try:
            if self._sign is not None:
                headers = [*headers, *await self._signature(delivery, self._sign)]
            timeout = self._rules.of(delivery.destination).attempt_timeout_seconds
            sender = self._sender if delivery.slot >= 0 else self._notice_sender
            return await sender.post(delivery.url, headers, delivery.body, timeout=timeout)
        except (ClientError, CallbackError) as error:
            return error

    async def _signature(self, delivery: Delivery, sign: Sign) -> Sequence[tuple[str, str]]:
        try:
            return await sign(delivery, self._now())
        except Exception as error:
            raise NotSent(f"not sent, because it cannot be signed: {error}") from error

    async def _settle(
        self, delivery: Delivery, verdict: Verdict, attempt: Attempt, now: int
    ) -> None:
        reason = _storable(verdict.reason)[:_REASON_CHARACTERS]
        context: dict[str, Any] = {
            "token": delivery.token,
            "destination": delivery.destination,
            "attempt": delivery.attempt,
            "reason": reason,
        }
        if verdict.decision in (Decision.DELIVERED, Decision.PROBABLY_DELIVERED):
            self.stats.delivered += 1
            await persist(self._database, Delivered(delivery, now, attempt))
            return
        wait = None
        if verdict.decision is Decision.RETRY:
            wait = self._rules.of(delivery.destination).retry.next_delay(
                delivery.retries + 1,
                self._draw(),
                left=timedelta(milliseconds=delivery.deadline_at - now),
                retry_after=verdict.retry_after,
            )
        if wait is None:
            self.stats.failed += 1
            logger.error("completion given up", extra=context)
            await persist(self._database, GiveUp(delivery, reason, now, attempt, self._notice))
            return
        self.stats.retried += 1
        logger.warning(
            "completion not delivered, will be retried",
            extra={**context, "retry_in_seconds": round(wait.total_seconds(), 1)},
        )
        next_at = now + round(wait.total_seconds() * 1000)
        unknown = delivery.outcome_unknown or verdict.outcome_unknown
        await persist(self._database, Retry(delivery, next_at, reason, unknown, now, attempt))
        self._due_at(next_at)

    def _write_arrived(self) -> None:
        """Write down what arrived in this turn of the loop, in one statement."""
        write = Arrived(self._arrived, self._now())
        self._arrived = []
        try:
            written = self._database.write(write)
        except DatabaseClosed:
            self._all_recorded(write)
        else:
            self.writing.add(written)
            written.add_done_callback(partial(self._written, write))

    def _written(self, write: Arrived, written: "asyncio.Future[None]") -> None:
        self.writing.discard(written)
        if written.cancelled() or written.exception() is None:
            self._all_recorded(write)
            return
        task = self._loop.create_task(self._write_again(write))
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def _write_again(self, write: Arrived) -> None:
        try:
            await persist(self._database, write)
        except DatabaseClosed:
            pass  # they stay in flight and are repeated after a restart: at least once
        finally:
            self._all_recorded(write)

    def _all_recorded(self, write: Arrived) -> None:
        for delivery in write.deliveries:
            self._recorded(delivery)


def _describe(
    delivery: Delivery, outcome: Outcome, verdict: Verdict, started_at: int, seconds: float
) -> Attempt:
    answered = isinstance(outcome, SentResponse)
    excerpt = None
    if isinstance(outcome, SentResponse) and outcome.body:
        excerpt = _storable(outcome.body.decode("utf-8", "replace"))[:_EXCERPT_CHARACTERS]
    return Attempt(
        n=delivery.attempt,
        started_at=started_at,
        duration_ms=round(seconds * 1000),
        status=outcome.status if isinstance(outcome, SentResponse) else None,
        error=_storable(verdict.reason or ("" if answered else str(outcome))) or None,
        address=outcome.address if isinstance(outcome, SentResponse) else None,
        response_excerpt=excerpt,
    )


def _storable(text: str) -> str:
    # PostgreSQL has no text with a NUL in it, and would refuse the outcome for ever.
    return text.replace("\0", "\ufffd")
