"""Completions that were given up: told of, and replayed."""

import asyncio
import json
from datetime import timedelta

import pytest

from callbacks.dead_letters import Replay
from callbacks.delivery import DeliverySettings
from callbacks.delivery_queries import ATTEMPTS_OF
from callbacks.retry_schedule import RetryPolicy
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.dead_destination import (
    DEAD,
    DOWN,
    attempts,
    dead_office,
    go_on_at,
    has_standing,
)
from tests.callbacks.office import HOUR_MS, Sender, answer, one_rule, until

pytestmark = pytest.mark.anyio


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
