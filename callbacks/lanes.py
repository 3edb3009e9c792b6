"""Deliveries in memory by destination, so that a slow one does not hold the others up."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from callbacks.outbox import Delivery


@dataclass(eq=False, slots=True)
class _Lane:
    active: int = 0
    queue: deque[Delivery] = field(default_factory=deque)
    left_behind: bool = False  # more may wait for it in the database


class Lanes:
    """Begins so many deliveries to a destination at a time; others wait in a queue.

    Args:
        begin: Begins one; it ends with `ended`.
        per_destination: How many are under way at a time.
        queued_per_destination: How many more are welcome.
        has_room: Told when a destination that `busy` named takes more.
    """

    def __init__(
        self,
        begin: Callable[[Delivery], None],
        *,
        per_destination: int,
        queued_per_destination: int,
        has_room: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._per_destination = per_destination
        self._queued = queued_per_destination
        self._has_room = has_room
        self._lanes: dict[str, _Lane] = {}

    def add(self, delivery: Delivery) -> None:
        """Begin a delivery, now or when its turn comes."""
        lane = self._lanes.get(delivery.destination)
        if lane is None:
            lane = self._lanes[delivery.destination] = _Lane()
        if lane.active < self._per_destination:
            lane.active += 1
            self._begin(delivery)
        else:
            lane.queue.append(delivery)

    def ended(self, delivery: Delivery) -> None:
        """Let the next one have the place of a delivery that was begun."""
        lane = self._lanes[delivery.destination]
        if lane.queue:
            self._begin(lane.queue.popleft())
        else:
            lane.active -= 1
            if lane.active == 0:
                del self._lanes[delivery.destination]
        if lane.left_behind and len(lane.queue) <= self._queued // 2:
            lane.left_behind = False
            self._has_room()

    def busy(self) -> list[str]:
        """Return the destinations that have enough in memory."""
        names = []
        for name, lane in self._lanes.items():
            if len(lane.queue) >= self._queued:
                lane.left_behind = True
                names.append(name)
        return names

    def clear(self) -> list[Delivery]:
        """Take out and return what was never begun."""
        queued = [delivery for lane in self._lanes.values() for delivery in lane.queue]
        for lane in self._lanes.values():
            lane.queue.clear()
        return queued
