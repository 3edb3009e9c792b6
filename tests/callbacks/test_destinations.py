"""What destinations that fail, ask for peace or are disabled mean for their deliveries."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.breaker import Breaker, BreakerPolicy
from callbacks.claims import ClaimDue
from callbacks.database import Statement, Write, table_of
from callbacks.dead_letters import TOO_OLD_WHILE_HELD, Replay
from callbacks.delivery import DeliverySettings
from callbacks.delivery_queries import ATTEMPTS_OF
from callbacks.destinations import EndProbe
from callbacks.outbox import Delivery
from callbacks.outcomes import Attempt, Retry
from callbacks.records import DestinationRecord
from callbacks.retry_schedule import RetryPolicy
from callbacks.standings import EVERY_STANDING
from clients.errors import UnknownOutcome, Unreachable
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import HOUR_MS, Office, Run, Sender, answer, one_rule, until
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

_destination = table_of(DestinationRecord)
CLOSE = Statement(
    sa.update(_destination)
    .where(_destination.c.name == sa.bindparam("name_is"))
    .values(failures=0, openings=0, open_until=None, wake_at=0)
)
LOSE = Statement(
    sa.update(_destination)
    .where(_destination.c.name == sa.bindparam("name_is"))
    .values(wake_at=None)
)
DOWN = Unreachable("refused")
DEAD = "dead.example"
MINUTE_MS = 60_000


async def has_standing(office: Office, **expected: Any) -> Breaker:
    """Wait until the dead destination's breaker is so in the database and in memory."""

    async def ask() -> None:
        while True:
            standing = await office.standing(DEAD)
            found = {name: getattr(standing.breaker, name) for name in expected}
            if found == expected and office.service.holds.holds(standing.name) == standing.holds(
                office.now()
            ):
                return
            await asyncio.sleep(0.005)

    async with asyncio.timeout(10):
        await ask()
    return (await office.standing(DEAD)).breaker


async def dead_office(open_office: OpenOffice, **options: Any) -> Office:
    """Open an office whose dead destination has just failed five times."""
    office = await open_office(sender=Sender(of_host={DEAD: DOWN}), **options)
    for n in range(5):
        await office.end(f"first{n}", DEAD)
    await has_standing(office, is_open=True, openings=1)
    for n in range(5):
        await office.is_(f"first{n}", "due", 1)
    return office


async def go_on_at(office: Office, at: int | None) -> None:
    assert at is not None
    office.time = at
    office.service.wake()


def attempts(office: Office, host: str = DEAD) -> int:
    return sum(url.startswith(f"http://{host}/") for url, _, _ in office.sender.posts)


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


# ------------------------------------------------------------ several processes


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


# ------------------------------------------------------------ fairness


def as_many_as_there_are(destination: str) -> int:
    return 1000


async def test_a_claim_takes_no_more_than_memory_wants(open_office: OpenOffice) -> None:
    """What is sent slowly waits in the database, and leaves memory to the others."""
    rules = one_rule(per_second=0.2)
    office = await open_office(settings=DeliverySettings(rules=rules, in_memory=100))
    for n in range(30):
        for k in range(20):
            await office.leave(f"t{n}-{k}", f"slow{n}.example")
    await office.database.write(EndProbe("http://nobody.example:80", office.now()))
    await until(lambda: office.service.held >= 30)
    await office.leave("other", "other.example")
    await office.is_("other", "delivered", 1)
    # One under way or done, one that waits.
    assert office.service.held <= 2 * 30


async def test_a_claim_takes_a_few_of_each(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=0))
    for n in range(90):
        await office.leave(f"big{n}", "big.example")
    for n in range(9):
        await office.leave(f"small{n}", f"small{n}.example")
    claim = ClaimDue("me", office.now(), 40, as_many_as_there_are, (), 1000)
    first = await office.database.write(claim)
    hosts = [each.destination for each in first.deliveries]
    assert len(hosts) == 13
    assert hosts.count("http://big.example:80") == 4
    assert first.more
    second = await office.database.write(claim)
    assert {each.destination for each in second.deliveries} == {"http://big.example:80"}
    assert len(second.deliveries) == 40


async def test_who_was_served_stands_behind(open_office: OpenOffice) -> None:
    """With more destinations than one claim looks at, all have their turn."""
    office = await open_office(settings=DeliverySettings(in_memory=0))
    for n in range(100):
        for k in range(3):
            await office.leave(f"t{n}-{k}", f"h{n}.example")
    seen: list[set[str]] = []
    for _ in range(2):
        office.time += 1
        claim = ClaimDue("me", office.now(), 64, as_many_as_there_are, (), 1000)
        found = await office.database.write(claim)
        seen.append({each.destination for each in found.deliveries})
    assert [len(hosts) for hosts in seen] == [64, 64]
    assert len(seen[0] | seen[1]) == 100


async def test_what_waits_longer_than_others_waits_for_its_time(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=0))
    claimed = await office.database.write(office.ending("t1", claim=True))
    attempt = Attempt(1, 0, 1, 500, None, None, None)
    await office.database.write(
        Retry(claimed[0], office.time + 5000, "answered 500", False, office.time, attempt)
    )
    await office.leave("t2")
    claim = ClaimDue("me", office.now(), 40, as_many_as_there_are, (), 1000)
    found = await office.database.write(claim)
    assert [each.token for each in found.deliveries] == ["t2"]
    assert found.next_at == office.time + 5000
    assert not found.more


# ------------------------------------------------------------ dead letters


async def test_the_operator_is_told_of_dead_letters(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender([answer(404)]), notices=True)
    await office.end("t1")
    await office.is_("t1", "failed", 1)
    await until(lambda: len(office.sender.posts) == 2)
    url, headers, body = office.sender.posts[1]
    assert url == "http://operator.example/dead"
    assert ("Content-Type", "application/json") in headers
    document = json.loads(body)
    callback_id = document["data"].pop("callback_id")
    assert document == {
        "type": "callback.failed",
        "timestamp": "2001-09-09T01:46:40.000Z",
        "data": {
            "operation_token": "t1",
            "destination": "http://caller.example:80",
            "attempts": 1,
            "reason": "answered 404",
            "created_at": "2001-09-09T01:46:40.000Z",
        },
    }
    await office.is_("t1", "delivered", 1, slot=-1)

    office.sender.answers = [answer(404)]
    assert await office.service.replay([callback_id]) == [callback_id]
    await office.is_("t1", "failed", 2)
    await office.is_("t1", "delivered", 2, slot=-1)
    assert json.loads(office.sender.posts[-1][2])["data"]["attempts"] == 2


async def test_nobody_is_told_of_a_notice_that_does_not_arrive(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender([answer(400), answer(400)]), notices=True)
    await office.end("t1")
    await office.is_("t1", "failed", 1)
    await office.is_("t1", "failed", 1, slot=-1)
    assert len(office.sender.posts) == 2


async def test_what_is_too_old_is_told_of(open_office: OpenOffice) -> None:
    office = await dead_office(open_office, notices=True)
    office.time += 73 * HOUR_MS
    await office.service.aging.look()
    for n in range(5):
        await office.is_(f"first{n}", "delivered", 1, slot=-1)


async def test_a_replay_begins_the_schedule_anew(open_office: OpenOffice) -> None:
    policy = RetryPolicy(max_age=timedelta(seconds=5))
    office = await open_office(
        sender=Sender([answer(503)] * 3), settings=DeliverySettings(rules=one_rule(retry=policy))
    )
    await office.end("t1")
    for attempt in range(1, 3):
        await go_on_at(office, await office.is_("t1", "due", attempt))
    await office.is_("t1", "failed", 3)
    office.sender.answers = [answer(503)]
    row_id = await office.id_of("t1")
    assert await office.service.replay([row_id, 999]) == [row_id]
    next_at = await office.is_("t1", "due", 4)
    assert next_at == office.time + 1000
    await go_on_at(office, next_at)
    await office.is_("t1", "delivered", 5)
    log = await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})
    assert [row[1] for row in log] == [1, 2, 3, 4, 5]


async def test_a_replay_asks_a_destination_that_was_dead(open_office: OpenOffice) -> None:
    """Whoever replays has mended something: one of the completions goes out at once."""
    office = await dead_office(open_office)
    office.sender.of_host[DEAD] = answer(404)
    await office.service.enable(f"http://{DEAD}:80")
    for n in range(5):
        await go_on_at(office, office.time + 1000)
        await office.is_(f"first{n}", "failed", 2)
    office.sender.of_host[DEAD] = DOWN
    for n in range(5):
        await office.end(f"second{n}", DEAD)
    await has_standing(office, is_open=True)
    office.sender.of_host.clear()
    ids = [await office.id_of(f"first{n}") for n in range(5)]
    assert await office.service.replay(ids) == ids
    for n in range(5):
        await office.is_(f"first{n}", "delivered", 3)


async def test_only_what_is_over_is_replayed(open_office: OpenOffice) -> None:
    office = await open_office(sender=Sender(gate=asyncio.Event()))
    await office.end("flying", "slow.example")
    await office.end("done", "fast.example")
    await office.is_("done", "delivered", 1)
    await office.service.disable("http://parked.example:80")
    await office.end("parked", "parked.example")
    ids = [await office.id_of(token) for token in ("flying", "done", "parked")]
    replay = Replay(ids, office.now(), office.service.max_age_ms)
    assert await office.database.write(replay) == [ids[1]]
    await office.is_("done", "delivered", 2)
    assert attempts(office, "fast.example") == 2
