"""Several delivery services on one database: who sends what, and who takes over from whom."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from callbacks.database import Write
from callbacks.delivery import DeliverySettings
from callbacks.delivery_queries import ATTEMPTS_OF
from callbacks.retry_schedule import RetryPolicy
from clients.errors import Unreachable
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import FakeClock, Office, Sender, answer, one_rule, until

pytestmark = pytest.mark.anyio


def posts(*offices: Office) -> Counter[str]:
    """How often each URL was posted to."""
    return Counter(post[0] for office in offices for post in office.sender.posts)


def full_of(deliveries: int) -> DeliverySettings:
    """Settings under which a service takes no more than so many at a time."""
    return DeliverySettings(in_memory=deliveries)


async def test_each_delivery_is_sent_by_one_of_them(open_office: OpenOffice) -> None:
    settings = DeliverySettings(
        rules=one_rule(concurrency=4), queued_per_destination=8, in_memory=16
    )
    offices = [await open_office(together=True, settings=settings) for _ in range(3)]
    for n in range(150):
        host = f"h{n}.example"
        if n % 3:
            await offices[0].leave(f"t{n}", host)  # whoever has room takes it
        else:
            await offices[n % 2].end(f"t{n}", host)
    for n in range(150):
        await offices[0].is_(f"t{n}", "delivered", 1)
    assert set(posts(*offices).values()) == {1}
    assert len(posts(*offices)) == 150


async def test_what_one_has_no_room_for_another_takes(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    full = await open_office(
        together=True, sender=Sender(gate=gate), settings=DeliverySettings(in_memory=1)
    )
    free = await open_office(together=True)
    await full.end("t1")
    assert not full.service.accepts("http://caller.example:80")
    await full.end("t2")  # nobody but the database tells of it
    await full.is_("t2", "delivered", 1)
    assert len(free.sender.posts) == 1
    gate.set()
    await full.is_("t1", "delivered", 1)


async def test_what_is_given_back_another_takes(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    leaving = await open_office(
        together=True,
        sender=Sender(gate=gate),
        settings=DeliverySettings(rules=one_rule(concurrency=1)),
    )
    staying = await open_office(together=True)
    for n in range(3):
        await leaving.end(f"t{n}")
    closing = asyncio.ensure_future(leaving.close(5))
    for n in (1, 2):
        await staying.is_(f"t{n}", "delivered", 1)
    gate.set()
    await closing
    assert (await staying.row("t0"))[:2] == ("delivered", 1)


async def test_the_rows_of_a_killed_process_are_sent_when_its_lease_is_over(
    open_office: OpenOffice,
) -> None:
    killed = await open_office(together=True, sender=Sender(gate=asyncio.Event()))
    other = await open_office(together=True, sender=Sender([answer(404), answer(404)]))
    await killed.end("t1")
    await until(lambda: killed.sender.posts)
    await killed.end("t2", submit=False)
    await killed.kill()
    await other.service.strays.recover()
    assert (await other.row("t1"))[:2] == ("in_flight", 1)  # it may be alive

    await killed.expire()
    await other.service.strays.recover()
    # A 404 would be the end of a first attempt; after one of unknown outcome it is no failure.
    await other.is_("t1", "delivered", 2)
    await other.is_("t2", "delivered", 2)
    assert len(other.sender.posts) == 2


async def test_a_recovery_comes_by_itself(open_office: OpenOffice) -> None:
    killed = await open_office(together=True, sender=Sender(gate=asyncio.Event()))
    await open_office(together=True, lease_seconds=0.4)
    await killed.end("t1")
    await killed.kill()
    await killed.expire()
    await killed.is_("t1", "delivered", 2)


async def test_what_a_stale_owner_finds_out_is_dropped(open_office: OpenOffice) -> None:
    gate, other_gate = asyncio.Event(), asyncio.Event()
    stale = await open_office(
        together=True, sender=Sender([answer(500), answer(400)], gate=gate), settings=full_of(2)
    )
    other = await open_office(together=True, sender=Sender(gate=other_gate))
    await stale.end("t1")
    await stale.end("t2")
    await until(lambda: len(stale.sender.posts) == 2)
    await stale.expire()
    await other.service.strays.recover()
    await until(lambda: len(other.sender.posts) == 2)
    gate.set()
    await until(lambda: stale.service.held == 0)
    for token in ("t1", "t2"):
        assert (await other.row(token))[:2] == ("in_flight", 2)
        assert await other.database.fetch(ATTEMPTS_OF, {"token": token}) == []
    other_gate.set()
    await other.is_("t1", "delivered", 2)
    await other.is_("t2", "delivered", 2)


async def test_what_arrived_is_delivered_whoever_sent_it(open_office: OpenOffice) -> None:
    gate, other_gate = asyncio.Event(), asyncio.Event()
    stale = await open_office(together=True, sender=Sender(gate=gate), settings=full_of(1))
    other = await open_office(together=True, sender=Sender([answer(500)], gate=other_gate))
    await stale.end("t1")
    await until(lambda: stale.sender.posts)
    await stale.expire()
    await other.service.strays.recover()
    await until(lambda: other.sender.posts)
    gate.set()
    await other.is_("t1", "delivered", 2)
    other_gate.set()
    await until(lambda: other.service.held == 0)
    assert (await other.row("t1"))[0] == "delivered"
    assert other.service.stats.retried == 1


async def test_a_frozen_process_begins_nothing(open_office: OpenOffice) -> None:
    clock = FakeClock()
    frozen = await open_office(together=True, clock=clock)
    await until(lambda: clock.sleeping == 2)
    claimed = await frozen.database.write(frozen.ending("t1", claim=True))
    clock.freeze(12.1)  # of 15
    frozen.service.submit(claimed)
    await frozen.leave("t2")
    assert not frozen.service.accepts("http://caller.example:80")
    await frozen.end("t3")
    assert (await frozen.row("t3"))[0] == "due"
    assert frozen.service.held == 1
    assert frozen.sender.posts == []
    clock.advance(0)  # the heartbeat is late and finds the lease good
    for token in ("t1", "t2", "t3"):
        await frozen.is_(token, "delivered", 1)
    assert len(frozen.sender.posts) == 3


async def test_what_was_not_begun_is_forgotten_with_the_lease(open_office: OpenOffice) -> None:
    clock, gate = FakeClock(), asyncio.Event()
    settings = DeliverySettings(rules=one_rule(concurrency=1))
    frozen = await open_office(
        together=True, clock=clock, sender=Sender(gate=gate), settings=settings
    )
    other = await open_office(together=True)
    await until(lambda: clock.sleeping == 2)
    for n in range(3):
        await frozen.end(f"t{n}")
    await frozen.end("waits", "other.example", submit=False)
    late = await frozen.database.write(frozen.ending("late", "late.example", claim=True))
    await until(lambda: frozen.sender.posts)
    await frozen.expire()
    clock.freeze(15.1)
    await other.service.strays.recover()
    for token in ("t1", "t2", "waits", "late"):
        await other.is_(token, "delivered", 2)
    gate.set()  # it thaws
    clock.advance(0)
    await frozen.lease.held()
    frozen.service.submit(late)  # the reply to a claim from before the loss
    await other.is_("t0", "delivered", 2)
    await until(lambda: frozen.service.held == 0)
    assert posts(frozen) == {"http://caller.example/cb": 1}
    assert posts(other)["http://late.example/cb"] == 1
    assert (await other.row("late"))[:2] == ("delivered", 2)


async def test_what_nobody_took_goes_on_after_a_lost_lease(open_office: OpenOffice) -> None:
    clock = FakeClock()
    office = await open_office(together=True, clock=clock)
    await until(lambda: clock.sleeping == 2)
    claimed = await office.database.write(office.ending("t1", claim=True))
    clock.advance(15.1)
    await office.lease.held()
    assert office.lease.lost_recently()
    office.service.submit(claimed)
    await office.is_("t1", "delivered", 1)


@pytest.mark.parametrize("wrong_by_hours", [-2, 2])
async def test_wrong_clocks_do_no_harm(open_office: OpenOffice, wrong_by_hours: int) -> None:
    settings = DeliverySettings(rules=one_rule(retry=RetryPolicy()))
    clock = FakeClock(wrong_by_ms=wrong_by_hours * 3_600_000)
    wrong = await open_office(
        together=True, clock=clock, time_stands_still=False, settings=settings,
        sender=Sender([Unreachable("refused")]),
    )  # fmt: skip
    right = await open_office(together=True, time_stands_still=False, settings=settings)
    await wrong.end("t1")
    next_at = await wrong.is_("t1", "due", 1)
    assert next_at is not None
    # One second, by the clock that all go by: neither hours from now, nor hours ago.
    assert -500 < next_at - right.now() <= 1000
    await wrong.service.close(1)
    await right.leave("t2")
    await right.is_("t1", "delivered", 2)
    await right.is_("t2", "delivered", 1)
    assert right.now() >= next_at


async def test_what_is_idle_does_not_ask_all_the_time(open_office: OpenOffice) -> None:
    offices = [await open_office(together=True) for _ in range(3)]
    looks: list[str] = []

    def note(write: Write[Any]) -> bool:
        looks.append(type(write).__name__)
        return False

    for office in offices:
        office.database.refuses = note
    await offices[0].end("t1")
    await offices[0].is_("t1", "delivered", 1)
    assert looks.count("ClaimDue") <= len(offices)  # their first looks, at most
