"""What destinations that fail, ask for peace or are disabled mean for their deliveries."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from callbacks.breaker import Breaker, BreakerPolicy
from callbacks.database import Statement, table_of
from callbacks.dead_letters import TOO_OLD_WHILE_HELD
from callbacks.delivery import DeliverySettings
from callbacks.outbox import Delivery
from callbacks.records import DestinationRecord
from callbacks.retry_schedule import RetryPolicy
from callbacks.standings import EVERY_STANDING
from clients.errors import UnknownOutcome
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.dead_destination import (
    DEAD,
    DOWN,
    MINUTE_MS,
    attempts,
    dead_office,
    go_on_at,
    has_standing,
)
from tests.callbacks.office import HOUR_MS, Run, Sender, answer, one_rule, until
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

_destination = table_of(DestinationRecord)
LOSE = Statement(
    sa.update(_destination)
    .where(_destination.c.name == sa.bindparam("name_is"))
    .values(wake_at=None)
)


async def test_five_failures_in_a_row_hold_a_destination(open_office: OpenOffice) -> None:
    office = await dead_office(open_office)
    await office.end("later", DEAD)  # not from memory
    assert await office.row("later") == ("due", 0, office.time)
    office.time += 30_000  # what failed first would be tried again by now
    await office.end("other", "other.example")
    await office.is_("other", "delivered", 1)
    assert attempts(office) == 5
    for n in range(5):
        assert (await office.row(f"first{n}"))[1] == 1  # waiting costs no attempt


async def test_one_probe_opens_the_way_for_all(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await dead_office(open_office)
    for n in range(20):
        await office.end(f"later{n}", DEAD)
    office.sender.of_host, office.sender.gate = {}, gate
    breaker = (await office.standing(DEAD)).breaker
    await go_on_at(office, breaker.open_until)
    await until(lambda: attempts(office) == 6)
    office.service.wake()
    await office.end("one more", DEAD)
    await office.leave("other", "fast.example")  # claimed after all that could be
    await office.is_("other", "delivered", 1)
    assert attempts(office) == 6  # the probe is under way
    gate.set()
    for n in range(20):
        await office.is_(f"later{n}", "delivered", 1)
    for n in range(5):
        await office.is_(f"first{n}", "delivered", 2)
    await office.is_("one more", "delivered", 1)
    assert (await office.standing(DEAD)).is_clean
    assert office.service.holds.standings == []


async def test_a_probe_that_fails_doubles_the_wait(open_office: OpenOffice) -> None:
    office = await dead_office(open_office)
    waits = []
    for openings in range(2, 7):
        breaker = (await office.standing(DEAD)).breaker
        assert breaker.open_until is not None
        await go_on_at(office, breaker.open_until)
        breaker = await has_standing(office, is_open=True, openings=openings, probe_until=None)
        assert breaker.open_until is not None
        waits.append((breaker.open_until - office.time) // MINUTE_MS)
    assert waits == [2, 4, 8, 15, 15]
    assert attempts(office) == 5 + 5


async def test_an_answer_in_between_resets_the_count(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender([*[DOWN] * 4, answer(404), *[DOWN] * 4, answer(200)]))
    for n in range(10):
        await office.end(f"t{n}", DEAD)
        await office.is_(f"t{n}", {4: "failed", 9: "delivered"}.get(n, "due"), 1)
    await until(lambda: office.service.holds.standings == [])
    assert (await office.standing(DEAD)).is_clean


@pytest.mark.parametrize("status", [400, 404, 410, 429, 409])
async def test_who_refuses_is_not_dead(open_office: OpenOffice, status: int) -> None:
    office = await open_office(sender=Sender([answer(status)] * 9))
    for n in range(9):
        await office.end(f"t{n}", DEAD)
        await office.is_(f"t{n}", "due" if status == 429 else "failed", 1)
    assert not office.service.holds.holds(f"http://{DEAD}:80")
    assert (await office.standing(DEAD)).breaker == Breaker()


async def test_those_under_way_when_it_opens_are_tried_again(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(rules=one_rule(concurrency=8), queued_per_destination=20)
    office = await open_office(
        sender=Sender(of_host={DEAD: UnknownOutcome("hangs")}, gate=gate), settings=settings
    )
    for n in range(20):
        await office.end(f"t{n}", DEAD)
    await until(lambda: attempts(office) == 8)
    gate.set()
    await has_standing(office, is_open=True)
    for n in range(20):
        await office.is_(f"t{n}", "due")
    made = attempts(office)
    assert 8 <= made < 20  # what was queued in memory was given back
    tried = [(await office.row(f"t{n}"))[1] for n in range(20)]
    assert sorted(tried, reverse=True) == [1] * made + [0] * (20 - made)


async def test_retry_after_holds_the_whole_destination(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender([answer(429, retry_after="90")]))
    await office.end("t0", DEAD)
    await office.is_("t0", "due", 1)
    await until(lambda: office.service.holds.holds(f"http://{DEAD}:80"))
    await office.end("t1", DEAD)
    assert await office.row("t1") == ("due", 0, office.time)
    await go_on_at(office, office.time + 89_000)
    await office.leave("other", "other.example")
    await office.is_("other", "delivered", 1)
    assert attempts(office) == 1
    await go_on_at(office, office.time + 1000)
    await office.is_("t0", "delivered", 2)
    await office.is_("t1", "delivered", 1)


async def test_what_is_disabled_parks_and_loses_nothing(open_office: OpenOffice) -> None:
    policy = RetryPolicy(max_age=timedelta(hours=1))
    office = await open_office(settings=DeliverySettings(rules=one_rule(retry=policy)))
    name = f"http://{DEAD}:80"
    await office.service.disable(name)
    await office.service.disable(name)
    for n in range(3):
        await office.end(f"t{n}", DEAD)
    await go_on_at(office, office.time + 90 * HOUR_MS)
    await office.service.aging.look()
    await office.leave("other", "other.example")
    await office.is_("other", "delivered", 1)
    assert [(await office.row(f"t{n}"))[:2] for n in range(3)] == [("due", 0)] * 3
    assert attempts(office) == 0
    office.sender.of_host[DEAD] = answer(503)
    await office.service.enable(name)
    for n in range(3):
        await office.is_(f"t{n}", "due", 1)  # as young as on its first day
    office.sender.of_host.clear()
    await go_on_at(office, office.time + 1000)
    for n in range(3):
        await office.is_(f"t{n}", "delivered", 2)


async def test_an_operator_overrules_a_breaker(open_office: OpenOffice) -> None:
    office = await dead_office(open_office)
    office.sender.of_host.clear()
    office.time += 1000
    await office.service.enable(f"http://{DEAD}:80")
    for n in range(5):
        await office.is_(f"first{n}", "delivered", 2)


async def test_disabling_stops_what_waits_in_memory(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(rules=one_rule(concurrency=1))
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(3):
        await office.end(f"t{n}", DEAD)
    await office.service.disable(f"http://{DEAD}:80")
    for n in (1, 2):
        await office.is_(f"t{n}", "due", 0)
    gate.set()
    await office.is_("t0", "delivered", 1)
    assert attempts(office) == 1


async def test_what_is_too_old_behind_a_breaker_is_given_up(open_office: OpenOffice) -> None:
    rules = one_rule(
        retry=RetryPolicy(max_age=timedelta(hours=2)),
        breaker=BreakerPolicy(first=timedelta(hours=9), cap=timedelta(hours=9)),
    )
    office = await dead_office(open_office, settings=DeliverySettings(rules=rules))
    await office.end("later", DEAD)
    office.time += HOUR_MS
    await office.end("young", DEAD)
    await office.service.aging.look()
    assert (await office.row("later"))[0] == "due"
    office.time += HOUR_MS + 1
    await office.service.aging.look()
    assert (await office.row("later"))[:2] == ("failed", 0)
    assert (await office.row("first0"))[:2] == ("failed", 1)
    assert (await office.row("young"))[0] == "due"
    assert await office.reason("later") == TOO_OLD_WHILE_HELD
    assert office.service.stats.failed == 6


async def test_an_hour_of_silence(open_office: OpenOffice) -> None:
    """A receiver that is down for an hour gets everything, and never too much at a time."""
    count = 400
    settings = DeliverySettings(
        rules=one_rule(concurrency=16), queued_per_destination=32, in_memory=64
    )
    office = await open_office(sender=Sender(of_host={DEAD: DOWN}), settings=settings)
    tokens = [f"t{n}" for n in range(count)]
    ended = iter(tokens)
    for _ in range(count // 2):
        await office.end(next(ended), DEAD)
    await has_standing(office, is_open=True, openings=1)
    began, openings = office.time, 1
    while office.time < began + HOUR_MS:
        breaker = await has_standing(office, is_open=True, openings=openings, probe_until=None)
        await go_on_at(office, breaker.open_until)
        openings += 1
        await office.end(next(ended), DEAD)
    for token in ended:
        await office.end(token, DEAD)
    breaker = await has_standing(office, is_open=True, openings=openings, probe_until=None)
    assert openings < 12
    assert attempts(office) <= 5 + 16 + openings  # 16 were under way when it opened
    office.sender.of_host.clear()
    office.sender.posts.clear()
    await go_on_at(office, breaker.open_until)
    for token in tokens:
        await office.is_(token, "delivered")
    assert attempts(office) == count
    assert office.sender.most[DEAD] <= 16


async def test_a_probe_that_is_not_sent_is_another_s_turn(open_office: OpenOffice) -> None:
    refusing = True

    async def sign(delivery: Delivery, now_ms: int) -> list[tuple[str, str]]:
        if refusing and delivery.probe:
            raise OSError("no key")
        return []

    office = await dead_office(open_office, sign=sign)
    await go_on_at(office, (await office.standing(DEAD)).breaker.open_until)
    breaker = await has_standing(office, is_open=True, openings=1, probe_until=None)
    assert attempts(office) == 5
    refusing = False
    office.sender.of_host.clear()
    await go_on_at(office, office.time + 10_000)
    for n in range(5):
        await office.is_(f"first{n}", "delivered")
    assert breaker.is_open


async def test_what_nothing_is_sent_to_any_more_is_forgotten(open_office: OpenOffice) -> None:
    office = await dead_office(open_office)
    office.time += 73 * HOUR_MS
    await office.service.aging.look()
    for n in range(5):
        await office.is_(f"first{n}", "failed")
    await go_on_at(office, office.time + 25 * HOUR_MS)  # a look finds that nothing waits any more

    async def is_forgotten() -> bool | None:
        await office.service.aging.look()
        return not await office.database.fetch(EVERY_STANDING, {}) or None

    await eventually(is_forgotten)
    await until(lambda: office.service.holds.standings == [])


async def test_a_delivery_that_nobody_looked_for_is_found(
    open_office: OpenOffice, caplog: pytest.LogCaptureFixture
) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=0))
    await office.leave("t1", DEAD)
    await office.database.write(Run(LOSE, {"name_is": f"http://{DEAD}:80"}))
    assert await office.not_looked_for() != []
    await office.service.aging.look()
    assert await office.not_looked_for() == []
    assert "found deliveries that nobody looked for" in caplog.text
    await office.service.aging.look()
    assert len(caplog.records) == 1
