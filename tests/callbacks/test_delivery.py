"""Delivery over a real outbox, with a fake sender and a fake clock."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from callbacks.attempts import Outcome, Post
from callbacks.database import Write
from callbacks.delivery import DeliverySettings
from callbacks.delivery_queries import ATTEMPTS_OF, BACKLOG
from callbacks.outbox import Delivery
from callbacks.retry_schedule import RetryPolicy
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from nexus_spec import Headers
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import BODY, Office, Sender, answer, one_rule, until

pytestmark = pytest.mark.anyio


async def go_on(office: Office, at: int | None) -> None:
    """Let time pass until an attempt is due."""
    assert at is not None
    office.time = at
    office.service.wake()


async def test_delivered_at_once(open_office: OpenOffice) -> None:
    office = await open_office()
    await office.end("t1")
    await office.is_("t1", "delivered", 1)
    assert office.sender.posts == [
        ("http://caller.example/cb", [("Token", "t"), ("Nexus-Operation-State", "succeeded")], BODY)
    ]
    assert await office.database.fetch(ATTEMPTS_OF, {"token": "t1"}) == []
    assert {n for _, n, _ in await office.database.fetch(BACKLOG, {})} == {0}
    assert len(office.seconds) == office.service.stats.delivered == 1


async def test_the_schedule(open_office: OpenOffice) -> None:
    office = await open_office()
    office.sender.answers = [
        answer(500), Unreachable("refused"), answer(429, retry_after="90"), UnknownOutcome("reset"),
        answer(404),
    ]  # fmt: skip
    began = office.time
    await office.end("t1")
    waits = []
    for attempt in range(1, 5):
        next_at = await office.is_("t1", "due", attempt)
        assert next_at is not None
        waits.append(next_at - office.time)
        office.time = next_at
        office.service.wake()
    await office.is_("t1", "delivered", 5)  # a 404 after an unknown outcome
    assert waits == [1000, 2000, 90_000, 8000]
    log = await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})
    assert [row[1] for row in log] == [1, 2, 3, 4, 5]
    assert [row[4] for row in log] == [500, None, 429, None, 404]
    assert log[0][5:] == ("answered 500", "192.0.2.1:80", "\ufffdexcerpt")
    assert log[1][5] == "refused"
    assert log[4][2] - began == sum(waits)
    stats = office.service.stats
    assert (stats.attempts, stats.retried, stats.delivered, stats.failed) == (5, 4, 1, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 501])
async def test_permanent(open_office: OpenOffice, status: int) -> None:
    office = await open_office(sender=Sender([answer(status)]))
    await office.end("t1")
    await office.is_("t1", "failed", 1)
    assert ("failed", 1, None) in await office.database.fetch(BACKLOG, {})


async def test_given_up_when_too_old(open_office: OpenOffice) -> None:
    policy = RetryPolicy(max_age=timedelta(seconds=2))
    office = await open_office(
        sender=Sender([answer(500)] * 9), settings=DeliverySettings(rules=one_rule(retry=policy))
    )
    await office.end("t1")
    next_at = await office.is_("t1", "due", 1)
    assert next_at is not None
    office.time = next_at
    office.service.wake()
    await office.is_("t1", "failed", 2)


async def test_a_retry_comes_by_itself(open_office: OpenOffice) -> None:
    policy = RetryPolicy(first=timedelta(milliseconds=30))
    office = await open_office(
        sender=Sender([answer(500)]), settings=DeliverySettings(rules=one_rule(retry=policy))
    )
    await office.end("t1")
    await office.is_("t1", "due", 1)
    office.time += 40  # nobody wakes the service
    await office.is_("t1", "delivered", 2)


async def test_what_was_in_flight_is_repeated_after_a_crash(open_office: OpenOffice) -> None:
    office = await open_office()
    await office.end("t1", submit=False)  # the process dies here
    assert await office.row("t1") == ("in_flight", 1, office.time)
    await office.close()
    office.sender.answers = [answer(404)]
    await office.open()
    await office.is_("t1", "delivered", 2)


async def test_a_destination_has_its_cap_and_does_not_hold_others_up(
    open_office: OpenOffice,
) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(
        rules=one_rule(concurrency=2), queued_per_destination=2, in_memory=100
    )
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(10):
        await office.end(f"slow{n}", "slow.example")
    assert office.service.held == 4  # the others wait in the database
    await office.end("fast0", "fast.example")
    await office.is_("fast0", "delivered")
    gate.set()
    for n in range(10):
        await office.is_(f"slow{n}", "delivered", 1)
    assert office.sender.most["slow.example"] == 2
    assert office.service.held == 0


async def test_what_finds_no_room_is_due_and_delivered(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(
        rules=one_rule(concurrency=1), queued_per_destination=1, in_memory=3
    )
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(8):
        await office.end(f"t{n}", f"slow{n}.example" if n < 5 else "fast.example")
    assert (await office.row("t7"))[0] == "due"
    gate.set()
    for n in range(8):
        await office.is_(f"t{n}", "delivered", 1)
    assert len(office.sender.posts) == 8


async def test_a_busy_destination_is_not_claimed(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(
        rules=one_rule(concurrency=1), queued_per_destination=1, in_memory=50
    )
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    await office.end("s1", "slow.example")
    await office.end("s2", "slow.example")
    await office.leave("s3", "slow.example")
    await office.leave("f1", "fast.example")
    await office.is_("f1", "delivered")
    assert (await office.row("s3"))[0] == "due"
    gate.set()
    await office.is_("s3", "delivered")


@pytest.mark.parametrize("status", [200, 500, 400])
async def test_a_database_that_refuses_loses_nothing(open_office: OpenOffice, status: int) -> None:
    office = await open_office(sender=Sender([answer(status)]))
    refused: list[str] = []

    def refuses(write: Write[Any]) -> bool:
        name = type(write).__name__
        if name in ("Arrived", "GiveUp", "Retry") and len(refused) < 2:
            refused.append(name)
            return True
        return False

    office.database.refuses = refuses
    await office.end("t1")
    await office.is_("t1", {200: "delivered", 500: "due", 400: "failed"}[status], 1)
    assert len(refused) == 2


async def test_the_poller_survives_a_database_that_refuses(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=1))
    refused: list[int] = []

    def refuses(write: Write[Any]) -> bool:
        if type(write).__name__ == "ClaimDue" and not refused:
            refused.append(1)
            return True
        return False

    office.database.refuses = refuses
    office.service.wake()
    await until(lambda: refused)
    await office.leave("t1")
    await office.is_("t1", "delivered")


async def test_an_attempt_that_breaks_is_tried_again(open_office: OpenOffice) -> None:
    async def around(delivery: Delivery, post: Post) -> Outcome:
        return await post(delivery, [*delivery.headers, ("traceparent", "x")])

    office = await open_office(sender=Sender([RuntimeError("bug")]), around=around)
    await office.end("t1")
    next_at = await office.is_("t1", "due", 1)
    assert next_at is not None
    await until(lambda: office.service.held == 0)
    office.time = next_at
    office.service.wake()
    await office.is_("t1", "delivered", 2)
    assert office.sender.posts[0][1][-1] == ("traceparent", "x")


@pytest.mark.parametrize(("status", "state"), [(503, "due"), (404, "failed")])
async def test_any_bytes_may_come_back(open_office: OpenOffice, status: int, state: str) -> None:
    """PostgreSQL has no text with a NUL in it."""
    nasty = SentResponse(status, Headers.from_pairs([]), b"a\0b\xff", "192.0.2.1:80")
    office = await open_office(sender=Sender([nasty]))
    await office.end("t1")
    await office.is_("t1", state, 1)
    log = await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})
    assert log[0][-1] == "a\ufffdb\ufffd"
    await until(lambda: office.service.held == 0)


async def test_each_attempt_is_signed(open_office: OpenOffice) -> None:
    async def sign(delivery: Delivery, now_ms: int) -> list[tuple[str, str]]:
        return [("webhook-timestamp", f"{delivery.attempt} at {now_ms}")]

    office = await open_office(sender=Sender([answer(500)]), sign=sign)
    began = office.time
    await office.end("t1")
    await go_on(office, await office.is_("t1", "due", 1))
    await office.is_("t1", "delivered", 2)
    assert [headers[-1] for _, headers, _ in office.sender.posts] == [
        ("webhook-timestamp", f"1 at {began}"),
        ("webhook-timestamp", f"2 at {began + 1000}"),
    ]


async def test_what_cannot_be_signed_is_not_sent_yet(open_office: OpenOffice) -> None:
    failing = [OSError("no database")] * 6

    async def sign(delivery: Delivery, now_ms: int) -> list[tuple[str, str]]:
        if failing:
            raise failing.pop()
        return []

    office = await open_office(sign=sign)
    await office.end("t1")
    for attempt in range(1, 7):
        await go_on(office, await office.is_("t1", "due", attempt))
    await office.is_("t1", "delivered", 7)
    assert len(office.sender.posts) == 1
    assert (await office.standing("caller.example")).is_clean  # it is not the destination's fault


async def test_closing_gives_back_what_was_never_begun(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(rules=one_rule(concurrency=1))
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(3):
        await office.end(f"t{n}")
    closing = asyncio.ensure_future(office.service.close(0.05))
    # A completion that was claimed just before finds the service closing.
    await until(lambda: not office.service.accepts("http://caller.example:80"))
    late = await office.database.write(office.ending("late", claim=True))
    office.service.submit(late)
    await closing
    assert office.sender.closed
    states = {token: (await office.row(token))[:2] for token in ("t0", "t1", "t2", "late")}
    assert states == {
        "t0": ("in_flight", 1),  # its outcome is unknown
        "t1": ("due", 0),
        "t2": ("due", 0),
        "late": ("due", 0),
    }
    await office.lease.close()
    await office.database.aclose()

    office.sender = Sender([answer(404)] * 4)
    await office.open()
    await office.is_("t0", "delivered", 2)
    for token in ("t1", "t2", "late"):
        await office.is_(token, "failed", 1)  # never sent before: the 404 means what it says


async def test_closing_lets_attempts_end(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await open_office(sender=Sender(gate=gate))
    await office.end("t1")
    closing = asyncio.ensure_future(office.service.close(5))
    await until(lambda: not office.service.accepts("http://caller.example:80"))
    gate.set()
    await closing
    assert (await office.row("t1"))[0] == "delivered"


async def test_a_closed_database_is_left_alone(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await open_office(sender=Sender(gate=gate))
    for n in range(2):
        await office.end(f"t{n}")
    office.sender.answers = [answer(200), answer(500)]
    await office.expire()
    await office.database.aclose()
    gate.set()
    await until(lambda: office.service.held == 0)
    office.service.wake()
    await office.close(1)
    await office.open()
    for n in range(2):
        await office.is_(f"t{n}", "delivered", 2)
