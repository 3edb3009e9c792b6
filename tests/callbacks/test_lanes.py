"""Turns, caps and rates of deliveries in memory, on a clock that is told the time."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.lanes import Lanes
from callbacks.outbox import Delivery


class Clock:
    """What lanes ask of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> "Handle":
        call = (self.now + delay, callback, args)
        self._calls.append(call)
        return Handle(self._calls, call)

    def run_until(self, now: float) -> None:
        while self._calls and (first := min(self._calls, key=lambda call: call[0]))[0] <= now:
            self._calls.remove(first)
            self.now = first[0]
            first[1](*first[2])
        self.now = now

    @property
    def waiting(self) -> int:
        return len(self._calls)


class Handle:
    def __init__(self, calls: list[Any], call: Any) -> None:
        self._calls, self._call = calls, call

    def cancel(self) -> None:
        self._calls.remove(self._call)


class Bench:
    """Lanes, and what they began."""

    def __init__(self, *, together: int = 100, queued: int = 10, **rule: Any) -> None:
        self.clock = Clock()
        self.begun: list[Delivery] = []
        self.made_room = 0
        self._count = 0
        self.lanes = Lanes(
            self.begun.append,
            rules=DeliveryRules(DeliveryRule(**rule)),
            concurrency=together,
            queued_per_destination=queued,
            has_room=self._has_room,
            loop=cast("asyncio.AbstractEventLoop", self.clock),
        )

    def _has_room(self) -> None:
        self.made_room += 1

    def add(self, host: str, count: int = 1) -> None:
        for _ in range(count):
            self._count += 1
            delivery = Delivery(
                id=self._count, token="t", slot=0, url="", destination=f"http://{host}:80",
                headers=(), body=b"", attempt=1, retries=0, outcome_unknown=False,
                deadline_at=0, owner="me",
            )  # fmt: skip
            self.lanes.add(delivery)

    def end(self, count: int = 1) -> None:
        """End the oldest that were begun."""
        for _ in range(count):
            self.lanes.ended(self.begun.pop(0))

    @property
    def under_way(self) -> Counter[str]:
        return Counter(each.destination.split("/")[2][:-3] for each in self.begun)


def test_a_destination_has_its_cap() -> None:
    bench = Bench(together=100)
    bench.add("a", 70)
    bench.add("b", 3)
    assert bench.under_way == {"a": 64, "b": 3}
    bench.end()
    assert bench.under_way == {"a": 64, "b": 3}


def test_all_together_have_one_and_take_turns() -> None:
    bench = Bench(together=4)
    bench.add("a", 20)
    bench.add("b", 2)
    bench.add("c", 1)
    assert bench.under_way == {"a": 4}
    bench.end(4)
    assert bench.under_way == {"a": 2, "b": 1, "c": 1}
    bench.end(4)
    assert bench.under_way == {"a": 3, "b": 1}
    while bench.begun:
        bench.end()
    assert bench.lanes.busy() == []


def test_a_destination_has_its_rate() -> None:
    bench = Bench(per_second=10.0)
    bench.add("a", 5)
    assert len(bench.begun) == 1
    bench.clock.run_until(0.25)
    assert len(bench.begun) == 3
    bench.clock.run_until(10)
    assert len(bench.begun) == 5
    bench.end(5)
    assert bench.clock.waiting == 0
    bench.add("a", 2)  # what was not used is not saved up
    assert len(bench.begun) == 1
    bench.clock.run_until(10.1)
    assert len(bench.begun) == 2


def test_a_rate_outlives_an_empty_lane() -> None:
    bench = Bench(per_second=1.0)
    bench.add("a")
    bench.end()
    bench.add("a")
    assert bench.begun == []
    bench.clock.run_until(1)
    assert len(bench.begun) == 1
    bench.end()
    bench.clock.run_until(5)
    assert bench.clock.waiting == 0
    assert bench.lanes.takes("http://a:80") == 5


def test_nothing_begins_after_the_end() -> None:
    bench = Bench(per_second=1.0)
    bench.add("a", 3)
    bench.lanes.close()
    bench.clock.run_until(100)
    assert len(bench.begun) == 1
    assert len(bench.lanes.clear()) == 2


def test_who_has_enough_is_busy_and_tells_when_it_has_not() -> None:
    bench = Bench(together=1, queued=4)
    bench.add("a", 5)
    assert bench.lanes.takes("http://a:80") == 0
    assert bench.lanes.takes("http://b:80") == 4
    assert bench.lanes.busy() == ["http://a:80"]
    bench.end()
    assert bench.made_room == 0
    bench.end()
    assert bench.made_room == 1
    bench.end()
    assert bench.made_room == 1


def test_what_was_never_begun_comes_out() -> None:
    bench = Bench(together=2)
    bench.add("a", 3)
    bench.add("b", 3)
    assert len(bench.lanes.clear(["http://a:80"])) == 1
    assert bench.lanes.clear(["http://c:80"]) == []
    assert {each.destination for each in bench.lanes.clear()} == {"http://b:80"}
    bench.end(2)
    assert bench.begun == []


def test_a_lane_that_is_emptied_in_line_is_forgotten() -> None:
    bench = Bench(together=1)
    bench.add("a")
    bench.add("b", 2)
    assert len(bench.lanes.clear(["http://b:80"])) == 2
    bench.end()
    bench.add("b")
    assert bench.under_way == {"b": 1}


@pytest.mark.parametrize(
    ("rule", "welcome"),
    [
        ({}, 256),
        ({"concurrency": 2}, 8),
        ({"per_second": 3.0}, 15),
        ({"per_second": 0.01}, 1),
        ({"concurrency": 1, "per_second": 100.0}, 4),
    ],
)
def test_memory_holds_what_can_be_sent_soon(rule: dict[str, Any], welcome: int) -> None:
    bench = Bench(queued=256, **rule)
    assert bench.lanes.takes("http://a:80") == welcome
    while bench.lanes.takes("http://a:80"):
        bench.add("a")
    assert bench.lanes.busy() == ["http://a:80"]
