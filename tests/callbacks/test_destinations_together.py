"""What several processes make of a destination that fails."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Statement, Write, table_of
from callbacks.records import DestinationRecord
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.dead_destination import (
    DEAD,
    DOWN,
    attempts,
    dead_office,
    go_on_at,
    has_standing,
)
from tests.callbacks.office import Run, Sender, until

pytestmark = pytest.mark.anyio

_destination = table_of(DestinationRecord)
CLOSE = Statement(
    sa.update(_destination)
    .where(_destination.c.name == sa.bindparam("name_is"))
    .values(failures=0, openings=0, open_until=None, wake_at=0)
)


async def test_all_processes_leave_a_dead_destination_alone(open_office: OpenOffice) -> None:
    one = await dead_office(open_office, together=True)
    other = await open_office(together=True)
    await until(lambda: other.service.holds.holds(f"http://{DEAD}:80"))
    late = await open_office(together=True)  # started afterwards
    for n, office in enumerate((other, late)):
        await office.end(f"later{n}", DEAD)
        assert (await office.row(f"later{n}"))[:2] == ("due", 0)
    one.sender.of_host.clear()
    at = (await one.standing(DEAD)).breaker.open_until
    for office in (one, other, late):
        await go_on_at(office, at)
    for n in range(5):
        await one.is_(f"first{n}", "delivered", 2)
    for n in range(2):
        await one.is_(f"later{n}", "delivered", 1)
    await until(
        lambda: not any(o.service.holds.holds(f"http://{DEAD}:80") for o in (one, other, late))
    )


async def test_one_of_all_processes_probes(open_office: OpenOffice) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    one = await dead_office(open_office, together=True)
    offices = [one, *[await open_office(together=True) for _ in range(2)]]
    at = (await one.standing(DEAD)).breaker.open_until
    for office, gate in zip(offices, gates, strict=True):
        office.sender.gate = gate
        office.sender.posts.clear()
        await go_on_at(office, at)
    await until(lambda: sum(map(attempts, offices)))
    for n, office in enumerate(offices):
        office.service.wake()
        await office.leave(f"other{n}", "fast.example")
        await office.is_(f"other{n}", "delivered", 1)
    assert sum(map(attempts, offices)) == 1
    for gate in gates:
        gate.set()


async def test_a_probe_whose_process_dies_is_made_again(open_office: OpenOffice) -> None:
    one = await dead_office(open_office, together=True)
    at = (await one.standing(DEAD)).breaker.open_until
    one.sender.gate = asyncio.Event()
    await go_on_at(one, at)
    await until(lambda: attempts(one) == 6)
    other = await open_office(together=True, time=one.time)
    await one.kill()
    await one.expire()
    await other.service.strays.recover()
    probe_until = (await other.standing(DEAD)).breaker.probe_until
    assert probe_until is not None
    await other.end("later", DEAD)
    assert attempts(other) == 0
    await go_on_at(other, probe_until)
    await other.is_("later", "delivered", 1)
    for n in range(5):
        await other.is_(f"first{n}", "delivered")


async def test_a_report_that_fails_is_made_again(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender(of_host={DEAD: DOWN}))
    refused: list[str] = []

    def refuses(write: Write[Any]) -> bool:
        if type(write).__name__ == "Report" and not refused:
            refused.append(DEAD)
            return True
        return False

    office.database.refuses = refuses
    for n in range(6):
        await office.end(f"t{n}", DEAD)
        await office.is_(f"t{n}", "due", 1)
    await has_standing(office, is_open=True)
    assert refused


async def test_news_that_were_missed_are_looked_up(open_office: OpenOffice) -> None:
    """A process that holds a destination back for no reason hears of it with its next claim."""
    office = await dead_office(open_office)
    office.sender.of_host.clear()
    name = f"http://{DEAD}:80"
    await office.database.real.write(Run(CLOSE, {"name_is": name}))  # and tell nobody
    assert office.service.holds.holds(name)
    await go_on_at(office, office.time + 1000)
    for n in range(5):
        await office.is_(f"first{n}", "delivered", 2)
    assert not office.service.holds.holds(name)
