"""Writes that landed although their reply was lost, and rows in flight that nobody holds."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from callbacks.claims import GiveBack
from callbacks.database import OutcomeUnknown, Write
from callbacks.delivery_queries import ATTEMPTS_OF
from callbacks.outcomes import Arrived, Attempt, Delivered, GiveUp, Retry
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import FrozenBy, Office, Sender, answer, until

pytestmark = pytest.mark.anyio


def first(name: str, of: int = 1) -> Callable[[Write[Any]], bool]:
    """Whether a write is among the first so many of its kind."""
    seen: list[str] = []

    def is_one(write: Write[Any]) -> bool:
        if type(write).__name__ != name or len(seen) == of:
            return False
        seen.append(name)
        return True

    return is_one


async def look_twice(office: Office) -> None:
    await office.service.strays.release_own()
    await office.service.strays.release_own()


@pytest.mark.parametrize(
    ("status", "name", "state"),
    [(200, "Arrived", "delivered"), (400, "GiveUp", "failed"), (500, "Retry", "due")],
)
async def test_an_outcome_is_written_once(
    open_office: OpenOffice, status: int, name: str, state: str
) -> None:
    office = await open_office(sender=Sender([answer(status)]))
    office.database.loses_reply = first(name, of=2)
    await office.end("t1")
    await office.is_("t1", state, 1)
    await until(lambda: office.service.held == 0)
    assert (await office.row("t1"))[:2] == (state, 1)
    log = await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})
    assert [row[4] for row in log] == ([] if status == 200 else [status])
    assert len(office.sender.posts) == 1


async def test_what_was_claimed_without_hearing_of_it_is_sent(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender([answer(404)]))
    office.database.loses_reply = first("ClaimDue")
    await office.leave("t1")
    await office.is_("t1", "in_flight", 1)
    await office.service.strays.release_own()
    # Once is not enough: it might have been committed just now.
    assert (await office.row("t1"))[:2] == ("in_flight", 1)
    await office.service.strays.release_own()
    await office.is_("t1", "delivered", 2)  # by a 404: its first attempt might have been made


async def test_a_look_comes_by_itself(open_office: OpenOffice) -> None:
    office = await open_office(lease_seconds=1.0)
    office.database.loses_reply = first("ClaimDue")
    await office.leave("t1")
    await office.is_("t1", "delivered", 2)


async def test_what_is_held_is_no_stray(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await open_office(sender=Sender(gate=gate))
    await office.end("t1")
    await look_twice(office)
    assert (await office.row("t1"))[:2] == ("in_flight", 1)
    office.database.refuses = lambda write: type(write).__name__ == "Arrived"
    gate.set()
    await until(lambda: office.service.stats.delivered)
    await look_twice(office)  # sent, and its outcome not yet written
    assert (await office.row("t1"))[:2] == ("in_flight", 1)
    office.database.refuses = lambda _: False
    await office.is_("t1", "delivered", 1)


async def test_an_end_whose_reply_was_lost_is_sent_at_once(open_office: OpenOffice) -> None:
    office = await open_office()
    office.database.loses_reply = first("Registered")
    with pytest.raises(OutcomeUnknown):
        await office.database.write(office.ending("t1", claim=True))
    await office.service.strays.release_own()
    office.time += 5
    again = FrozenBy("t1", office.lease.id, office.now())
    deliveries = await office.database.write(again)
    assert [(d.attempt, d.owner, d.outcome_unknown) for d in deliveries] == [
        (1, office.lease.id, False)
    ]
    office.service.submit(deliveries)
    office.service.submit(deliveries)  # told of twice, sent once
    await office.is_("t1", "delivered", 1)
    assert len(office.sender.posts) == 1
    assert await office.database.write(again) == []
    assert await office.database.write(FrozenBy("unknown", office.lease.id, 0)) == []


async def test_what_was_found_again_is_no_stray(open_office: OpenOffice) -> None:
    office = await open_office()
    frozen = await office.database.write(office.ending("t1", claim=True))
    await office.service.strays.release_own()
    # Between the looks the end is tried again, and this process hears of the row.
    office.time += 5
    await office.database.write(FrozenBy("t1", office.lease.id, office.now()))
    await office.service.strays.release_own()
    assert (await office.row("t1"))[:2] == ("in_flight", 1)
    office.service.submit(frozen)
    await office.is_("t1", "delivered", 1)


async def test_others_frozen_rows_are_not_ones_own(open_office: OpenOffice) -> None:
    office = await open_office()
    await office.database.write(office.ending("t1", claim=True))
    assert await office.database.write(FrozenBy("t1", "another", office.now())) == []


async def test_writes_of_an_earlier_attempt_change_nothing(open_office: OpenOffice) -> None:
    office = await open_office()
    (delivery,) = await office.database.write(office.ending("t1", claim=True))
    attempt = Attempt(1, 0, 1, 500, None, None, None)
    retry = Retry(delivery, office.time, "answered 500", False, office.time, attempt)
    office.sender.gate = asyncio.Event()
    await office.database.write(retry)
    office.service.wake()
    await office.is_("t1", "in_flight", 2)
    for stale in (
        retry,
        GiveUp(delivery, "refused", office.time, attempt, None),
        GiveBack(delivery, office.time),
    ):
        await office.database.write(stale)
        assert (await office.row("t1"))[:2] == ("in_flight", 2)
    assert len(await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})) == 1
    await office.database.write(Delivered(delivery, office.time, attempt))
    assert (await office.row("t1"))[0] == "delivered"
    office.sender.gate.set()
    await until(lambda: office.service.held == 0)


async def test_a_recovery_whose_reply_was_lost(open_office: OpenOffice) -> None:
    office = await open_office(together=True)
    killed = await open_office(together=True)
    await killed.end("t1", submit=False)
    await killed.kill()
    await killed.expire()
    office.database.loses_reply = first("RecoverInFlight")
    await office.service.strays.recover()
    await office.is_("t1", "delivered", 2)
    assert len(office.sender.posts) == 1


async def test_what_is_told_late_does_not_swallow_a_replay(open_office: OpenOffice) -> None:
    office = await open_office()
    (delivery,) = await office.database.write(office.ending("t1"))
    office.service.submit([delivery])
    await office.is_("t1", "delivered", 1)
    await office.service.disable(delivery.destination)
    assert await office.service.replay([delivery.id]) == [delivery.id]
    # The write that closed it is repeated: its reply was lost.
    await office.database.write(Arrived([delivery], office.now()))
    assert (await office.row("t1"))[0] == "due"
    await office.service.enable(delivery.destination)
    await office.is_("t1", "delivered", 2)
    assert len(office.sender.posts) == 2
