"""Delivery: sends frozen completions until they arrive or are given up for good."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from callbacks.database import DatabaseClosed, SqliteDatabase, persist
from callbacks.errors import CallbackError
from callbacks.outbox import Attempt, ClaimDue, Close, Delivery, GiveBack, RecoverInFlight, Retry
from callbacks.records import CallbackState
from callbacks.retry_schedule import Decision, RetryPolicy, Verdict, judge
from clients.errors import ClientError, UnknownOutcome
from clients.sender import Sender, SentResponse

logger = logging.getLogger(__name__)

Outcome = SentResponse | ClientError | CallbackError
Post = Callable[[Delivery, Sequence[tuple[str, str]]], Awaitable[Outcome]]
AroundAttempt = Callable[[Delivery, Post], Awaitable[Outcome]]

_CLAIM_AT_MOST = 256
_EXCERPT_CHARACTERS = 500
_IDLE_SECONDS = 60.0
_STOP_SECONDS = 1.0
_NEVER_MS = 2**62


@dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """How delivery goes about it.

    Attributes:
        retry: When a failed attempt is repeated, and for how long.
        attempt_timeout_seconds: The most that one attempt may take, answer included.
        per_destination: How many attempts to one destination are under way at a time.
        queued_per_destination: How many more wait for it in memory; the rest wait in the database.
        in_memory: The most that are held in memory altogether.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    attempt_timeout_seconds: float = 10.0
    per_destination: int = 64
    queued_per_destination: int = 512
    in_memory: int = 4096


@dataclass
class DeliveryStats:
    """Numbers since the process began."""

    attempts: int = 0
    delivered: int = 0
    retried: int = 0
    failed: int = 0


@dataclass(eq=False, slots=True)
class _Destination:
    active: int = 0
    queue: deque[Delivery] = field(default_factory=deque)


class DeliveryService:
    """Owns every attempt of this process, those from memory and those from the database.

    Args:
        database: Where the outbox is.
        sender: Posts; the egress guard is inside.
        settings: Bounds and the schedule.
        observe: Told how long each attempt took, in seconds.
        around_attempt: Wraps an attempt, for tracing: given the delivery and the attempt itself.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        sender: Sender,
        settings: DeliverySettings | None = None,
        *,
        observe: Callable[[float], None] | None = None,
        around_attempt: AroundAttempt | None = None,
        now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._sender = sender
        self._settings = settings or DeliverySettings()
        self._observe = observe
        self._around_attempt = around_attempt
        self._now = now
        self._draw = draw
        self._loop = asyncio.get_running_loop()
        self._destinations: dict[str, _Destination] = {}
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._closing = False
        self._looks_again_at = _NEVER_MS  # milliseconds since 1970
        self.stats = DeliveryStats()
        self.max_age_ms = round(self._settings.retry.max_age.total_seconds() * 1000)

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Begin to deliver, the attempts first whose outcome a crash left unknown."""
        recovered = await persist(self._database, RecoverInFlight(self._now()))
        if recovered:
            logger.info("repeats deliveries of unknown outcome", extra={"count": recovered})
        self._poller = self._loop.create_task(self._poll())

    async def close(self, drain_seconds: float) -> None:
        """Stop; attempts under way may end, the others wait in the database."""
        self._closing = True
        if self._poller is not None:
            # Not cancelled: what it is claiming right now would be claimed by nobody.
            self._wake.set()
            await asyncio.wait([self._poller])
        for destination in self._destinations.values():
            self._held -= len(destination.queue)
            self._give_back(destination.queue)
            destination.queue.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)
        await self._sender.aclose()

    # ------------------------------------------------------------ in

    def has_room(self) -> bool:
        """Whether a completion that is frozen now would be sent at once."""
        return self._held < self._settings.in_memory and not self._closing

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Send completions that were claimed in the database for this process."""
        if self._closing:
            self._give_back(deliveries)
            return
        for delivery in deliveries:
            destination = self._destinations.get(delivery.destination)
            if destination is None:
                destination = self._destinations[delivery.destination] = _Destination()
            self._held += 1
            if destination.active < self._settings.per_destination:
                self._begin(destination, delivery)
            else:
                destination.queue.append(delivery)

    def wake(self) -> None:
        """Look for deliveries that are due."""
        self._wake.set()

    @property
    def held(self) -> int:
        """How many deliveries are under way or queued in memory."""
        return self._held

    # ------------------------------------------------------------ attempts

    def _begin(self, destination: _Destination, delivery: Delivery) -> None:
        destination.active += 1
        task = self._loop.create_task(self._deliver(destination, delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, destination: _Destination, delivery: Delivery) -> None:
        try:
            await self._attempt(delivery)
        except DatabaseClosed:
            pass  # still in flight in the database: repeated after the restart
        except Exception:
            logger.exception("delivery broke", extra={"token": delivery.token})
        finally:
            self._held -= 1
            destination.active -= 1
            if destination.queue and not self._closing:
                self._begin(destination, destination.queue.popleft())
            elif destination.active == 0:
                self._destinations.pop(delivery.destination, None)

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Let what was claimed and not begun be sent by the next process."""
        for delivery in deliveries:
            try:
                write = self._database.write(GiveBack(delivery.id, self._now()))
            except DatabaseClosed:
                return  # sent again after the restart all the same
            write.add_done_callback(self._given_back)

    def _given_back(self, written: "asyncio.Future[None]") -> None:
        if not written.cancelled() and (error := written.exception()) is not None:
            logger.error("cannot give a delivery back", extra={"error": repr(error)})

    async def _attempt(self, delivery: Delivery) -> None:
        started_at = self._now()
        began = time.perf_counter()
        try:
            if self._around_attempt is None:
                outcome = await self._post(delivery, delivery.headers)
            else:
                outcome = await self._around_attempt(delivery, self._post)
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
            write = Close(delivery.id, CallbackState.DELIVERED, self._now(), None)
            self._database.write(write).add_done_callback(partial(self._written, write))
            return
        verdict = judge(
            outcome,
            previous_unknown=delivery.outcome_unknown,
            now=datetime.fromtimestamp(self._now() / 1000, UTC),
        )
        attempt = _describe(delivery, outcome, verdict, started_at, seconds)
        await self._settle(delivery, verdict, attempt)

    async def _post(self, delivery: Delivery, headers: Sequence[tuple[str, str]]) -> Outcome:
        try:
            return await self._sender.post(
                delivery.url,
                headers,
                delivery.body,
                timeout=self._settings.attempt_timeout_seconds,
            )
        except (ClientError, CallbackError) as error:
            return error

    async def _settle(self, delivery: Delivery, verdict: Verdict, attempt: Attempt) -> None:
        now = self._now()
        context: dict[str, Any] = {
            "token": delivery.token,
            "destination": delivery.destination,
            "attempt": delivery.attempt,
            "reason": verdict.reason,
        }
        if verdict.decision in (Decision.DELIVERED, Decision.PROBABLY_DELIVERED):
            self.stats.delivered += 1
            await persist(self._database, Close(delivery.id, CallbackState.DELIVERED, now, attempt))
            return
        wait = None
        if verdict.decision is Decision.RETRY:
            age_ms = now - (delivery.deadline_at - self.max_age_ms)
            wait = self._settings.retry.next_delay(
                delivery.attempt,
                self._draw(),
                age=timedelta(milliseconds=age_ms),
                retry_after=verdict.retry_after,
            )
        if wait is None:
            self.stats.failed += 1
            logger.error("completion given up", extra=context)
            await persist(self._database, Close(delivery.id, CallbackState.FAILED, now, attempt))
            return
        self.stats.retried += 1
        logger.warning(
            "completion not delivered, will be retried",
            extra={**context, "retry_in_seconds": round(wait.total_seconds(), 1)},
        )
        next_at = now + round(wait.total_seconds() * 1000)
        await persist(
            self._database,
            Retry(
                delivery.id,
                next_at,
                delivery.outcome_unknown or verdict.outcome_unknown,
                attempt,
            ),
        )
        if next_at < self._looks_again_at:
            self._wake.set()

    def _written(self, write: Close, written: "asyncio.Future[None]") -> None:
        if written.cancelled() or written.exception() is None:
            return
        task = self._loop.create_task(self._write_again(write))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_again(self, write: Close) -> None:
        try:
            await persist(self._database, write)
        except DatabaseClosed:
            pass  # it stays in flight and is repeated after a restart: at least once

    # ------------------------------------------------------------ what is due

    async def _poll(self) -> None:
        while not self._closing:
            # Until this look is done, whatever becomes due later asks for another one.
            self._looks_again_at = _NEVER_MS
            try:
                wait_seconds = await self._claim_due()
            except DatabaseClosed:
                return
            except Exception:
                logger.exception("cannot look for due deliveries")
                wait_seconds = 1.0
            self._looks_again_at = self._now() + round(wait_seconds * 1000)
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _claim_due(self) -> float:
        """Claim what is due and there is room for; return when to look again."""
        room = min(_CLAIM_AT_MOST, self._settings.in_memory - self._held)
        if room <= 0:
            return 0.1
        now = self._now()
        claimed, next_at = await self._database.write(ClaimDue(now, room, self._busy()))
        self.submit(claimed)
        if len(claimed) == room:
            return 0.0
        busy_wait = 0.1 if self._busy() else _IDLE_SECONDS
        if next_at is None:
            return busy_wait
        return min(busy_wait, max(0.0, (next_at - self._now()) / 1000))

    def _busy(self) -> list[str]:
        return [
            name
            for name, destination in self._destinations.items()
            if len(destination.queue) >= self._settings.queued_per_destination
        ]


def _describe(
    delivery: Delivery, outcome: Outcome, verdict: Verdict, started_at: int, seconds: float
) -> Attempt:
    answered = isinstance(outcome, SentResponse)
    excerpt = None
    if isinstance(outcome, SentResponse) and outcome.body:
        excerpt = outcome.body.decode("utf-8", "replace")[:_EXCERPT_CHARACTERS]
    return Attempt(
        n=delivery.attempt,
        started_at=started_at,
        duration_ms=round(seconds * 1000),
        status=outcome.status if isinstance(outcome, SentResponse) else None,
        error=verdict.reason or (None if answered else str(outcome)),
        address=outcome.address if isinstance(outcome, SentResponse) else None,
        response_excerpt=excerpt,
    )
