"""Deliveries in memory by destination, so that a slow one does not hold the others up."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.outbox import Delivery

# What waits in memory for a destination: so many times what it takes at once, and no more than it
# takes in so many seconds. The rest waits in the database.
_QUEUED_ROUNDS = 4
_QUEUED_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class _Lane:
    name: str
    concurrency: int
    interval_seconds: float  # between two beginnings; 0: none
    welcome: int  # how many may stand in the queue
    active: int = 0
    queue: deque[Delivery] = field(default_factory=deque)
    next_at: float = 0.0  # by the loop's clock: the next may begin
    stands_in_line: bool = False  # or waits for its next moment
    left_behind: bool = False  # more may wait for it in the database

    @property
    def may_begin(self) -> bool:
        return bool(self.queue) and self.active < self.concurrency


class Lanes:
    """Begins so many deliveries at a time, altogether and to each destination, each in turn.

    Args:
        begin: Begins one; it ends with `ended`.
        rules: How many a destination gets at a time, and in a second.
        concurrency: How many are under way altogether.
        queued_per_destination: How many more of one destination are welcome; fewer, where it
            takes few at a time or in a second, so that those do not fill the memory.
        has_room: Told when a destination that `busy` named takes more.
        loop: Whose clock counts.
    """

    def __init__(
        self,
        begin: Callable[[Delivery], None],
        *,
        rules: DeliveryRules,
        concurrency: int,
        queued_per_destination: int,
        has_room: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._begin = begin
        self._rules = rules
        self._free = concurrency
        self._queued = queued_per_destination
        self._has_room = has_room
        self._loop = loop
        self._lanes: dict[str, _Lane] = {}
        self._line: deque[_Lane] = deque()  # who may begin one, each once
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, delivery: Delivery) -> None:
        """Begin a delivery, now or when its turn comes."""
        name = delivery.destination
        lane = self._lanes.get(name)
        if lane is None:
            rule = self._rules.of(name)
            interval = 0.0 if rule.per_second is None else 1 / rule.per_second
            lane = _Lane(name, rule.concurrency, interval, self._welcome(rule))
            self._lanes[name] = lane
        lane.queue.append(delivery)
        self._stand_in_line(lane)
        self._go_on()

    def ended(self, delivery: Delivery) -> None:
        """Let the next one have the place of a delivery that was begun."""
        lane = self._lanes[delivery.destination]
        lane.active -= 1
        self._free += 1
        self._stand_in_line(lane)
        self._go_on()
        self._tidy(lane)
        if lane.left_behind and len(lane.queue) <= lane.welcome // 2:
            lane.left_behind = False
            self._has_room()

    def takes(self, name: str) -> int:
        """Return how many more deliveries to a destination are welcome."""
        lane = self._lanes.get(name)
        if lane is None:
            return self._welcome(self._rules.of(name))
        return max(0, lane.welcome - len(lane.queue))

    def busy(self) -> list[str]:
        """Return the destinations that have enough in memory."""
        names = []
        for name, lane in self._lanes.items():
            if len(lane.queue) >= lane.welcome:
                lane.left_behind = True
                names.append(name)
        return names

    def clear(self, names: Iterable[str] | None = None) -> list[Delivery]:
        """Take out and return what was never begun, of some destinations or of all."""
        queued: list[Delivery] = []
        for name in list(self._lanes) if names is None else names:
            lane = self._lanes.get(name)
            if lane is not None:
                queued += lane.queue
                lane.queue.clear()
                self._tidy(lane)
        return queued

    def _welcome(self, rule: DeliveryRule) -> int:
        soon = _QUEUED_ROUNDS * rule.concurrency
        if rule.per_second is not None:
            soon = min(soon, math.ceil(_QUEUED_SECONDS * rule.per_second))
        return min(self._queued, soon)

    def _stand_in_line(self, lane: _Lane) -> None:
        if not lane.may_begin or lane.stands_in_line:
            return
        lane.stands_in_line = True
        wait_seconds = lane.next_at - self._loop.time() if lane.interval_seconds else 0.0
        if wait_seconds > 0:
            self._timers[lane.name] = self._loop.call_later(wait_seconds, self._is_time, lane)
        else:
            self._line.append(lane)

    def _is_time(self, lane: _Lane) -> None:
        del self._timers[lane.name]
        self._line.append(lane)
        self._go_on()

    def _go_on(self) -> None:
        while self._free > 0 and self._line:
            lane = self._line.popleft()
            lane.stands_in_line = False
            if not lane.may_begin:
                self._tidy(lane)
                continue
            self._free -= 1
            lane.active += 1
            if lane.interval_seconds:
                lane.next_at = max(lane.next_at, self._loop.time()) + lane.interval_seconds
            delivery = lane.queue.popleft()
            # In line again, behind the others, before anything else happens.
            self._stand_in_line(lane)
            self._begin(delivery)

    def _tidy(self, lane: _Lane) -> None:
        """Forget a lane that has nothing; one with a rate is remembered until it may go on."""
        if lane.active or lane.queue or lane.stands_in_line:
            return
        if lane.interval_seconds and lane.next_at > self._loop.time():
            lane.stands_in_line = True
            wait_seconds = lane.next_at - self._loop.time()
            self._timers[lane.name] = self._loop.call_later(wait_seconds, self._forget, lane)
        elif self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]

    def _forget(self, lane: _Lane) -> None:
        del self._timers[lane.name]
        lane.stands_in_line = False
        self._stand_in_line(lane)
        self._go_on()
        self._tidy(lane)

    def close(self) -> None:
        """Begin nothing more that waits for its moment."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
