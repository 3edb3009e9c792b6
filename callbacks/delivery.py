"""Delivery: sends frozen completions until they arrive or are given up for good."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from callbacks.attempts import AroundAttempt, Attempts, DeliveryStats
from callbacks.database import Database, DatabaseClosed
from callbacks.delivery_writes import GiveBack, Keep
from callbacks.due_deliveries import DueDeliveries
from callbacks.lanes import Lanes
from callbacks.leases import Lease
from callbacks.outbox import Delivery
from callbacks.retry_schedule import RetryPolicy
from callbacks.strays import Strays
from clients.sender import Sender

logger = logging.getLogger(__name__)

_STOP_SECONDS = 1.0


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


class DeliveryService:
    """Owns every attempt of this process, those from memory and those from the database.

    Args:
        database: Where the outbox is.
        sender: Posts; the egress guard is inside.
        settings: Bounds and the schedule.
        lease: Of this process, open: no attempt begins unless it holds.
        observe: Told how long each attempt took, in seconds.
        around_attempt: Wraps an attempt, for tracing: given the delivery and the attempt itself.
        now: The clock, in milliseconds since 1970; by default the database's, through the lease.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        sender: Sender,
        settings: DeliverySettings | None = None,
        *,
        lease: Lease,
        observe: Callable[[float], None] | None = None,
        around_attempt: AroundAttempt | None = None,
        now: Callable[[], int] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._sender = sender
        self._settings = settings or DeliverySettings()
        self._lease = lease
        self._now = now or lease.now_ms
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Delivery] = {}
        self._waiting_for_lease: dict[int, Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._due = DueDeliveries(
            database,
            lease,
            capacity=self._settings.in_memory,
            room=self._room,
            busy=self._busy,
            submit=self.submit,
            now=self._now,
            draw=draw,
        )
        self._lanes = Lanes(
            self._begin,
            per_destination=self._settings.per_destination,
            queued_per_destination=self._settings.queued_per_destination,
            has_room=self._due.wake,
        )
        self._attempts = Attempts(
            database,
            sender,
            self._settings.retry,
            timeout_seconds=self._settings.attempt_timeout_seconds,
            recorded=self._drop,
            due_at=self._due.due_at,
            observe=observe,
            around=around_attempt,
            now=self._now,
            draw=draw,
        )
        self.strays = Strays(
            database, lease, is_held=self._held.__contains__, now=self._now, draw=draw
        )
        self.max_age_ms = round(self._settings.retry.max_age.total_seconds() * 1000)
        lease.on_lost(self._lease_lost)
        database.subscribe(self._told)

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Begin to deliver, the attempts first whose outcome a crash left unknown."""
        await self.strays.recover()
        self._own_tasks = [
            self._loop.create_task(self._due.run(), name="due deliveries"),
            self._loop.create_task(self.strays.run(), name="stray deliveries"),
        ]

    async def close(self, drain_seconds: float) -> None:
        """Stop; attempts under way may end, the others wait in the database."""
        self._closing = True
        self._due.close()
        if self._own_tasks:
            looking, straying = self._own_tasks
            straying.cancel()
            # Not cancelled at once: what it is claiming right now would wait for a recovery.
            await asyncio.wait([looking], timeout=drain_seconds + _STOP_SECONDS)
            looking.cancel()
            await asyncio.wait([looking, straying])
        unsent = [*self._lanes.clear(), *self._waiting_for_lease.values()]
        self._waiting_for_lease.clear()
        self._give_back(unsent)
        tasks = [*self._tasks, *self._attempts.writing]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_seconds)
        left = [*self._tasks, *self._attempts.writing]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)
        await self._sender.aclose()

    # ------------------------------------------------------------ in

    @property
    def owner(self) -> str:
        """Who claims the deliveries that are submitted here: the id of this process's lease."""
        return self._lease.id

    def has_room(self) -> bool:
        """Whether a completion that is frozen now would be sent at once."""
        return self._room() > 0 and not self._closing and self._lease.holds()

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Send completions that were claimed in the database for this process."""
        if self._closing:
            self._give_back(deliveries)
            return
        for delivery in deliveries:
            known = self._held.get(delivery.id)
            if known is not None and known.attempt == delivery.attempt:
                continue  # a write that was tried again told of it twice
            self._held[delivery.id] = delivery
            self._lanes.add(delivery)

    def wake(self) -> None:
        """Look for deliveries that are due."""
        self._due.wake()

    @property
    def held(self) -> int:
        """How many deliveries are in memory: queued, under way or being recorded."""
        return len(self._held)

    @property
    def stats(self) -> DeliveryStats:
        """Numbers since the process began."""
        return self._attempts.stats

    def _room(self) -> int:
        return self._settings.in_memory - len(self._held)

    def _busy(self) -> list[str]:
        return self._lanes.busy()

    def _told(self, channel: str, _: str) -> None:
        if channel in {"deliver", ""} and not self._closing:
            self._due.wake()

    # ------------------------------------------------------------ attempts

    def _begin(self, delivery: Delivery) -> None:
        task = self._loop.create_task(self._deliver(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            undisputed = self._lease.holds() and not self._lease.lost_recently()
            if undisputed or await self._still_owned(delivery):
                await self._attempts.make(delivery)
            else:
                self._drop(delivery)
        except DatabaseClosed:
            self._drop(delivery)  # still in flight in the database: repeated by another process
        except Exception:
            logger.exception("delivery broke", extra={"token": delivery.token})
            self._drop(delivery)  # found as a stray
        finally:
            self._lanes.ended(delivery)

    async def _still_owned(self, delivery: Delivery) -> bool:
        """Wait until the lease holds; return whether the delivery is still this process's."""
        while True:
            self._waiting_for_lease[delivery.id] = delivery
            await self._lease.held()
            if self._waiting_for_lease.pop(delivery.id, None) is not delivery:
                return False
            if not self._lease.lost_recently():
                return True
            if not await self._database.write(Keep(delivery, self._now())):
                return False
            if self._lease.holds():
                return True

    def _drop(self, delivery: Delivery) -> None:
        # A later attempt may have been claimed already, as soon as this one was recorded.
        if self._held.get(delivery.id) is delivery:
            del self._held[delivery.id]
            self._due.made_room()

    def _lease_lost(self) -> None:
        """Forget what was not begun: its rows are sent by whoever recovers them."""
        for delivery in [*self._lanes.clear(), *self._waiting_for_lease.values()]:
            self._drop(delivery)
        self._waiting_for_lease.clear()

    def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Let what was claimed and not begun be sent by the next process."""
        for delivery in deliveries:
            self._drop(delivery)
            try:
                write = self._database.write(GiveBack(delivery, self._now()))
            except DatabaseClosed:
                return  # sent again after the restart all the same
            write.add_done_callback(self._given_back)

    def _given_back(self, written: "asyncio.Future[None]") -> None:
        if not written.cancelled() and (error := written.exception()) is not None:
            logger.error("cannot give a delivery back", extra={"error": repr(error)})
