"""Delivery: sends frozen completions until they arrive or are given up for good."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from callbacks.aging import Aging
from callbacks.attempts import AroundAttempt, Attempts, DeliveryStats, Sign
from callbacks.claims import GiveBack, Keep
from callbacks.database import Database, DatabaseClosed
from callbacks.dead_letters import Notice, Replay
from callbacks.delivery_rules import DeliveryRules
from callbacks.due_deliveries import DueDeliveries
from callbacks.holds import Holds
from callbacks.lanes import Lanes
from callbacks.leases import Lease
from callbacks.outbox import Delivery
from callbacks.standings import Disable, Enable, Postpone, Standing
from callbacks.strays import Strays
from clients.sender import Sender

logger = logging.getLogger(__name__)

_STOP_SECONDS = 1.0
_POSTPONED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """How delivery goes about it.

    Attributes:
        rules: The schedule and the bounds of each destination.
        concurrency: How many attempts are under way at a time, altogether.
        queued_per_destination: How many more wait for one destination in memory; the rest wait in
            the database.
        in_memory: The most that are held in memory altogether.
        notice: How the operator is told of a completion that is given up; not at all by default.
    """

    rules: DeliveryRules = field(default_factory=DeliveryRules)
    concurrency: int = 1024
    queued_per_destination: int = 256
    in_memory: int = 4096
    notice: Notice | None = None


class DeliveryService:
    """Owns every attempt of this process, those from memory and those from the database.

    Args:
        database: Where the outbox is.
        sender: Posts; the egress guard is inside. Closed with the service.
        settings: Bounds and the schedule.
        notice_sender: Posts the notices to the operator, which may go where no caller may send;
            the same sender by default.
        lease: Of this process, open: no attempt begins unless it holds.
        sign: Signs each attempt; none is signed without it.
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
        notice_sender: Sender | None = None,
        sign: Sign | None = None,
        observe: Callable[[float], None] | None = None,
        around_attempt: AroundAttempt | None = None,
        now: Callable[[], int] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._senders = [sender] if notice_sender is None else [sender, notice_sender]
        self._settings = settings or DeliverySettings()
        self._lease = lease
        self._now = now or lease.now_ms
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Delivery] = {}
        self._waiting_for_lease: dict[int, Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_tasks: list[asyncio.Task[None]] = []
        self._closing = False
        rules = self._settings.rules
        # A probe that is not heard of any more was lost with its process.
        probe_seconds = lease.seconds + max(rule.attempt_timeout_seconds for rule in rules.all)
        self._due = DueDeliveries(
            database,
            lease,
            capacity=self._settings.in_memory,
            probe_ms=round(probe_seconds * 1000),
            room=self._room,
            busy=self._busy,
            takes=self._takes,
            submit=self.submit,
            now=self._now,
            draw=draw,
        )
        self._lanes = Lanes(
            self._begin,
            rules=rules,
            concurrency=self._settings.concurrency,
            queued_per_destination=self._settings.queued_per_destination,
            has_room=self._due.wake,
            loop=self._loop,
        )
        self.holds = Holds(database, rules, held=self._hold, now=self._now, draw=draw)
        self._attempts = Attempts(
            database,
            sender,
            notice_sender or sender,
            rules,
            self.holds,
            notice=self._settings.notice,
            sign=sign,
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
        self.aging = Aging(
            database,
            lease,
            notice=self._settings.notice,
            stats=self.stats,
            tidy=self.holds.tidy,
            now=self._now,
            draw=draw,
        )
        lease.on_lost(self._lease_lost)
        database.subscribe(self._told)

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Begin to deliver, the attempts first whose outcome a crash left unknown."""
        await self.strays.recover()
        await self.holds.open()
        self._own_tasks = [
            self._loop.create_task(self._due.run(), name="due deliveries"),
            self._loop.create_task(self.strays.run(), name="stray deliveries"),
            self._loop.create_task(self.aging.run(), name="aging deliveries"),
        ]

    async def close(self, drain_seconds: float) -> None:
        """Stop; attempts under way may end, the others wait in the database."""
        self._closing = True
        self._due.close()
        if self._own_tasks:
            looking, *others = self._own_tasks
            for task in others:
                task.cancel()
            # Not cancelled at once: what it is claiming right now would wait for a recovery.
            await asyncio.wait([looking], timeout=drain_seconds + _STOP_SECONDS)
            looking.cancel()
            await asyncio.wait(self._own_tasks)
        self._lanes.close()
        unsent = [*self._lanes.clear(), *self._waiting_for_lease.values()]
        self._waiting_for_lease.clear()
        self._give_back(unsent)
        try:
            async with asyncio.timeout(drain_seconds):
                # An attempt that ends has an outcome to be written.
                while under_way := [*self._tasks, *self._attempts.writing]:
                    await asyncio.wait(under_way)
        except TimeoutError:
            pass
        left = [*self._tasks, *self._attempts.writing]
        for unfinished in left:
            unfinished.cancel()
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)
        await self.holds.close()
        for sender in self._senders:
            await sender.aclose()

    # ------------------------------------------------------------ in

    @property
    def owner(self) -> str:
        """Who claims the deliveries that are submitted here: the id of this process's lease."""
        return self._lease.id

    def accepts(self, destination: str) -> bool:
        """Whether a completion for a destination that is frozen now would be sent at once."""
        return (
            self._room() > 0
            and not self._closing
            and self._lease.holds()
            and self._lanes.takes(destination) > 0
            and not self.holds.holds(destination)
        )

    def max_age_ms(self, destination: str) -> int:
        """For how long delivery to a destination is tried, in milliseconds."""
        return self._settings.rules.of(destination).max_age_ms

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Send completions that were claimed in the database for this process."""
        if self._closing:
            self._give_back(deliveries)
            return
        for delivery in deliveries:
            known = self._held.get(delivery.id)
            if known is not None and known.attempt == delivery.attempt:
                continue  # a write that was tried again told of it twice
            if self.holds.may_go(delivery.destination, probe=delivery.probe):
                self._held[delivery.id] = delivery
                self._lanes.add(delivery)
                if delivery.probe and not self.holds.holds(delivery.destination):
                    self.holds.look_up(delivery.destination)  # the database knows better
            else:
                # Held since it was claimed, or no longer held and this process has not heard of it.
                self.holds.look_up(delivery.destination)
                self._give_back([delivery])

    def wake(self) -> None:
        """Look for deliveries that are due."""
        self._due.wake()

    @property
    def closed(self) -> bool:
        """Whether it sends nothing more."""
        return self._closing

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

    def _takes(self, destination: str) -> int:
        return self._lanes.takes(destination)

    def _told(self, channel: str, _: str) -> None:
        if channel in {"deliver", ""} and not self._closing:
            self._due.wake()

    def _hold(self, destination: str) -> None:
        """Let what waits for a destination wait in the database: it is held."""
        queued = self._lanes.clear([destination])
        probes = [delivery for delivery in queued if delivery.probe]
        self._give_back(delivery for delivery in queued if not delivery.probe)
        for delivery in probes:
            self._lanes.add(delivery)

    # ------------------------------------------------------------ operators

    async def replay(self, ids: Sequence[int]) -> list[int]:
        """Deliver again what was given up, or what arrived; return the ids of those.

        What the database raises means that none of them is replayed, unless its outcome is
        unknown; asking again is safe.
        """
        return await self._database.write(Replay(ids, self._now(), self.max_age_ms))

    async def disable(self, destination: str) -> Standing:
        """Hold the deliveries to a destination back until it is enabled."""
        return await self._change(Disable(destination, self._now()))

    async def enable(self, destination: str) -> Standing:
        """Deliver to a destination again, each for as long as if it had been frozen just now.

        A few at a time, so that nobody waits for all of them; what is interrupted leaves the
        destination as it was.
        """
        deadline_at = self._now() + self.max_age_ms(destination)
        while await self._database.write(Postpone(destination, deadline_at, _POSTPONED_AT_ONCE)):
            pass
        return await self._change(Enable(destination, self._now()))

    async def _change(self, write: Disable | Enable) -> Standing:
        standing = await self._database.write(write)
        self.holds.learn(standing)  # others are told, and hear of it a moment later
        return standing

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
