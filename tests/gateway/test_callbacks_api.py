"""`/api/v1/callbacks`: what is listed and shown, and what is replayed, on both databases."""

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from callbacks.database import is_postgres
from callbacks.delivery_queries import BACKLOG_BY_DESTINATION, BACKLOG_OF_DESTINATION
from callbacks.records import CallbackState
from gateway.stored_callbacks import dead_letter_count, dead_letters, listing
from tests.gateway.dead_letters import write_dead_letters
from tests.gateway.desk import OpenDesk
from tests.support.callback_receiver import Answer, CallbackReceiver
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1"


# ---------------------------------------------------------------- listing and showing


async def test_each_state_is_listed(open_desk: OpenDesk, receiver: CallbackReceiver) -> None:
    async with open_desk() as desk:
        held = Answer(hold=asyncio.Event())
        tokens: dict[str, str] = {}
        for state, answer in (
            ("delivered", 200), ("failed", 400), ("due", 503), ("in_flight", held),
        ):  # fmt: skip
            receiver.will_answer(answer)
            tokens[state] = await desk.start("end", "null", receiver.url())
            await desk.of(tokens[state], state)
        tokens["registered"] = await desk.start("nap", 60, receiver.url())
        for state, token in tokens.items():
            [only] = await desk.callbacks(state=state)
            assert (only["token"], only["state"], only["kind"]) == (token, state, "completion")
            assert (only["endpoint"], only["service"]) == ("default", "lab")
            assert only["operation"] == ("nap" if state == "registered" else "end")
            assert only["destination"] == receiver.url("")
            assert only["attempts"] == (0 if state == "registered" else 1)
            assert (only["closed_at"] is None) == (state not in {"delivered", "failed"})
            assert (only["next_at"] is None) == (state in {"registered", "delivered", "failed"})
            assert only["waits_for"] is None
        assert [c["token"] for c in await desk.callbacks()] == list(reversed(tokens.values()))
        assert [c["operation"] for c in await desk.callbacks(operation="nap")] == ["nap"]
        assert held.hold is not None
        held.hold.set()


async def test_filters_and_pages(open_desk: OpenDesk, database_url: str) -> None:
    write_dead_letters(database_url, f"{NOBODY}/a", 7, service="a")
    write_dead_letters(database_url, "https://[::1]/b", 3, service="b")
    async with open_desk() as desk:

        async def tokens(**query: object) -> list[str]:
            return [c["token"] for c in await desk.callbacks(**query)]

        assert await tokens(service="b") == ["b-3", "b-2", "b-1"]
        assert await tokens(service="b", operation="old", token="b-2") == ["b-2"]
        assert await tokens(service="b", operation="new") == []
        for same in ("https://[::1]:443", "HTTPS://[0:0::1]/else?where", "https://[::1]"):
            assert await tokens(destination=same, state="failed") == ["b-3", "b-2", "b-1"]
        assert await tokens(destination="http://[::1]") == []
        # Given up in the second, third, ... millisecond.
        since, until = "2023-11-14T22:13:20.001Z", "2023-11-14T23:13:20.003+01:00"
        assert await tokens(since=since, until=until) == ["b-3", "b-2", "a-3", "a-2"]
        pages: list[list[str]] = []
        before: dict[str, int] = {}
        while True:
            answer = await desk.http.get("/api/v1/callbacks", params={"limit": 4, **before})
            page = answer.json()
            pages.append([c["token"] for c in page["callbacks"]])
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert pages == [
            ["b-3", "b-2", "b-1", "a-7"], ["a-6", "a-5", "a-4", "a-3"], ["a-2", "a-1"],
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=lost", "state is one of registered, due, in_flight, delivered, failed"),
        ("limit=1001", "limit is a whole number from 1 to 1000"),
        ("limit=0", "limit is a whole number from 1 to 1000"),
        ("before=x", "before is a whole number from 1 to 9223372036854775807"),
        ("before=9223372036854775808", "before is a whole number from 1 to 9223372036854775807"),
        ("since=2h", "since: invalid RFC 3339 timestamp '2h'"),
        ("until=", "until: invalid RFC 3339 timestamp ''"),
        ("destination=caller.example", "destination: must begin with http:// or https://"),
        ("service=%00", "service: no name holds a NUL"),
    ],
)
async def test_what_cannot_be_asked_for(query: str, said: str, open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        status, message = await desk.refused("GET", f"callbacks?{query}")
    assert status == 400
    assert message.startswith(said)


async def test_a_callback_is_shown_with_its_attempts_and_no_secrets(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(Answer(503, body=b"busy"), Answer(400, body=b"never"))
    async with open_desk(first_retry_seconds=0.01) as desk:
        token = await desk.start("end", "null", receiver.url("/cb?x=1"), token="very secret")
        listed = await desk.of(token, "failed")
        answer = await desk.http.get(f"/api/v1/callbacks/{listed['id']}")
        shown = answer.json()
        operation = (await desk.http.get(f"/api/v1/operations/{token}")).json()
    log = shown.pop("attempt_log")
    assert [(a["attempt"], a["status"], a["response_excerpt"]) for a in log] == [
        (1, 503, "busy"),
        (2, 400, "never"),
    ]
    names = shown.pop("header_names")
    assert {"token", "Nexus-Operation-State"} <= set(names)
    assert shown.pop("body_bytes") == 0
    assert shown == listed
    assert (shown["url"], shown["reason"]) == (receiver.url("/cb?x=1"), "answered 400")
    assert "very secret" not in answer.text
    assert operation["deliveries"] == [{**listed, "attempt_log": log}]


async def test_the_notice_of_a_dead_letter_is_listed_as_one(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(410)
    async with open_desk(dead_letter_webhook=receiver.url("/told")) as desk:
        token = await desk.start("end", "null", receiver.url())
        await receiver.one("/told")
        await desk.of(token, "delivered")
        kinds = [(c["kind"], c["slot"], c["state"]) for c in await desk.callbacks(token=token)]
        assert kinds == [("notice", -1, "delivered"), ("completion", 0, "failed")]
        deliveries = (await desk.http.get(f"/api/v1/operations/{token}")).json()["deliveries"]
        assert [d["kind"] for d in deliveries] == ["notice", "completion"]


async def test_a_notice_that_was_given_up_is_replayed_by_its_id_alone(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(410, 410)
    async with open_desk(dead_letter_webhook=receiver.url("/told")) as desk:
        token = await desk.start("end", "null", receiver.url())

        async def both_failed() -> list[int] | None:
            found = await desk.callbacks(token=token, state="failed")
            return [c["id"] for c in found] if len(found) == 2 else None

        notice, _ = await eventually(both_failed)
        for chosen in ({"all": True}, {"token": token}, {"destination": receiver.url()}):
            assert (await desk.replay(**chosen, dry_run=True))["matching"] == 1
        answer = await desk.http.post(f"/api/v1/callbacks/{notice}/replay")
        assert (answer.status_code, answer.json()["kind"]) == (202, "notice")
        told = [r.json() for r in await receiver.received(3) if r.path == "/told"]
        assert told[0] == told[1]


@pytest.mark.parametrize("path", ["0", "4711", "-1", "x", "9223372036854775808", "9" * 99])
async def test_an_unknown_callback(path: str, open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        for method, verb in (("GET", ""), ("POST", "/replay")):
            refused = await desk.refused(method, f"callbacks/{path}{verb}")
            assert refused == (404, "no such callback")


# ---------------------------------------------------------------- one is replayed


@pytest.mark.parametrize(("answer", "state"), [(400, "failed"), (200, "delivered")])
async def test_what_has_ended_is_replayed(
    answer: int, state: str, open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(answer, Answer(503), 200)
    async with open_desk(first_retry_seconds=0.01) as desk:
        token = await desk.start("end", "null", receiver.url())
        ended = await desk.of(token, state)
        answered = await desk.http.post(f"/api/v1/callbacks/{ended['id']}/replay")
        assert answered.status_code == 202
        assert answered.json()["id"] == ended["id"]
        first, second, third = await receiver.received(3)
        assert first.body == second.body == third.body
        assert first.get("token") == second.get("token") == "hush"

        async def replayed() -> dict[str, Any] | None:
            [now] = await desk.callbacks(token=token)
            return now if now["state"] == "delivered" and now["attempts"] == 3 else None

        # From the start of the schedule: the 503 counts as the first failure.
        assert (await eventually(replayed))["retries"] == 1


async def test_what_has_not_ended_is_not_replayed(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    held = Answer(hold=asyncio.Event())
    async with open_desk() as desk:
        for operation, value, answer, state, said in (
            ("nap", 60, None, "registered", "its operation has not ended"),
            ("end", "null", held, "in_flight", "an attempt to deliver it is under way"),
            ("end", "null", 500, "due", "it is not given up: it is sent again at 2"),
        ):
            if answer is not None:
                receiver.will_answer(answer)
            token = await desk.start(operation, value, receiver.url())
            found = await desk.of(token, state)
            status, message = await desk.refused("POST", f"callbacks/{found['id']}/replay")
            assert status == 409
            assert message.startswith(said)
            assert [c["state"] for c in await desk.callbacks(token=token)] == [state]
        # The one that is due, once its destination is held back.
        [found] = await desk.callbacks(state="due")
        await desk.post("destinations/disable", {"destination": receiver.url("")})
        _, message = await desk.refused("POST", f"callbacks/{found['id']}/replay")
        assert message.endswith(f"it waits until {receiver.url('')} is enabled")
        assert [c["waits_for"] for c in await desk.callbacks(state="due")] == ["disabled"]
        assert held.hold is not None
        held.hold.set()


@pytest.mark.parametrize(
    ("answer", "callbacks", "waits_for", "said"),
    [
        (500, {"breaker_failures": 1}, "breaker", "answers again, or is enabled"),
        (Answer(503, {"Retry-After": "60"}), {}, "retry_after", "asked for that with Retry-After"),
    ],
    ids=["breaker", "retry_after"],
)
async def test_a_due_one_says_what_it_waits_for(
    answer: int | Answer,
    callbacks: dict[str, object],
    waits_for: str,
    said: str,
    open_desk: OpenDesk,
    receiver: CallbackReceiver,
) -> None:
    receiver.will_answer(answer)
    async with open_desk(**callbacks) as desk:
        token = await desk.start("end", "null", receiver.url())

        async def waiting() -> dict[str, Any] | None:
            return next((c for c in await desk.callbacks(token=token) if c["waits_for"]), None)

        found = await eventually(waiting)
        assert found["waits_for"] == waits_for
        _, message = await desk.refused("POST", f"callbacks/{found['id']}/replay")
        assert message.endswith(said)


# ---------------------------------------------------------------- many are replayed


async def test_many_are_replayed_a_few_at_a_time(
    open_desk: OpenDesk, database_url: str, receiver: CallbackReceiver
) -> None:
    write_dead_letters(database_url, receiver.url("/a"), 7, service="a")
    write_dead_letters(database_url, receiver.url("/b"), 5, service="b")
    write_dead_letters(database_url, receiver.url("/c"), 2, service="c", state="delivered")
    async with open_desk() as desk:
        counted = await desk.replay(service="a", dry_run=True)
        assert counted["matching"] == 7
        fixed = {"service": "a", "as_of": counted["as_of"], "limit": 3}
        assert await desk.callbacks(state="due") == []
        answers, left = [], []
        for _ in range(4):
            answers.append(await desk.replay(**fixed))
            dead = await desk.callbacks(state="failed", service="a")
            left.append([c["token"] for c in reversed(dead)])
        counts = [(a["replayed"], a["remaining"]) for a in answers]
        assert counts == [(3, 4), (3, 1), (1, 0), (0, 0)]
        assert left == [["a-4", "a-5", "a-6", "a-7"], ["a-7"], [], []]  # the oldest went first
        assert {a["as_of"] for a in answers} == {counted["as_of"]}
        arrived = [r.path for r in await receiver.received(7)]
        assert sorted(arrived) == [f"/a/{n}" for n in range(1, 8)]
        assert await desk.replay(token="b-4") | {"as_of": ""} == {
            "replayed": 1, "remaining": 0, "as_of": "",
        }  # fmt: skip
        everything = await desk.replay(all=True)
        assert (everything["replayed"], everything["remaining"]) == (4, 0)
        assert not [r for r in await receiver.received(12) if r.path.startswith("/c")]


async def test_what_is_given_up_again_is_not_taken_twice(
    open_desk: OpenDesk, database_url: str
) -> None:
    async with CallbackReceiver(lambda _: Answer(400)) as receiver:
        write_dead_letters(database_url, receiver.url(), 6)
        async with open_desk() as desk:
            as_of = (await desk.replay(all=True, dry_run=True))["as_of"]

            async def given_up_again(count: int) -> bool | None:
                failed = await desk.callbacks(state="failed", since=as_of)
                return len(failed) == count or None

            for taken, left in ((4, 2), (2, 0), (0, 0)):
                answer = await desk.replay(all=True, as_of=as_of, limit=4)
                assert (answer["replayed"], answer["remaining"]) == (taken, left)
                await eventually(lambda left=left: given_up_again(6 - left))  # type: ignore[misc]
            assert len(receiver.requests) == 6
            # A new set has them again; one in the future is one of now.
            counted = await desk.replay(all=True, dry_run=True, as_of="2999-01-01T00:00:00Z")
            assert counted["matching"] == 6
            assert counted["as_of"] < "2999"


async def test_two_who_replay_at_once_do_not_send_twice(
    open_desk: OpenDesk, database_url: str, receiver: CallbackReceiver
) -> None:
    write_dead_letters(database_url, receiver.url(), 40)
    async with AsyncExitStack() as stack:
        desk = other = await stack.enter_async_context(open_desk())
        if is_postgres(database_url):
            other = await stack.enter_async_context(open_desk())
        as_of = (await desk.replay(all=True, dry_run=True))["as_of"]
        answers = await asyncio.gather(
            *(each.replay(all=True, as_of=as_of, limit=7) for each in [desk, other] * 3)
        )
        assert sum(answer["replayed"] for answer in answers) == 40
        await receiver.received(40)
        assert {c["attempts"] for c in await desk.callbacks(state="delivered")} <= {4}
        assert len({r.path for r in receiver.requests}) == len(receiver.requests) == 40


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{}", "which completions? Say destination, service"),
        ('{"all": false}', "which completions? Say destination, service"),
        ('{"dry_run": true, "as_of": "2026-01-01T00:00:00Z", "limit": 7}', "which completions?"),
        ('{"all": true, "service": "lab"}', '"all": true goes without a filter'),
        ('{"servcie": "lab"}', "there is no 'servcie' here; there are destination, service"),
        ('{"service": null}', "service is a text"),
        ('{"service": "\\u0000"}', "service: no name holds a NUL"),
        ('{"all": 1}', "all is true or false"),
        ('{"all": true, "dry_run": "yes"}', "dry_run is true or false"),
        ('{"all": true, "limit": 0}', "limit is a whole number from 1 to 5000"),
        ('{"all": true, "limit": 5001}', "limit is a whole number from 1 to 5000"),
        ('{"all": true, "limit": true}', "limit is a whole number from 1 to 5000"),
        ('{"all": true, "as_of": "now"}', "as_of: invalid RFC 3339 timestamp 'now'"),
        ('{"destination": "*"}', "destination: must begin with http:// or https://"),
        ("[]", "the body is not a JSON object"),
        ("", "the body is not valid JSON"),
    ],
)
async def test_a_typo_replays_nothing(
    body: str, said: str, open_desk: OpenDesk, database_url: str
) -> None:
    write_dead_letters(database_url, NOBODY, 2)
    async with open_desk() as desk:
        status, message = await desk.refused("POST", "callbacks/replay", content=body)
        assert len(await desk.callbacks(state="failed")) == 2
    assert status == 400
    assert message.startswith(said)


# ---------------------------------------------------------------- which indexes are read


def plan_of(database_url: str, sql: str, params: dict[str, Any]) -> str:
    if is_postgres(database_url):
        for name in params:
            sql = sql.replace(f":{name}", f"%({name})s")
        with psycopg.connect(database_url) as connection:
            connection.execute("ANALYZE")
            rows = connection.execute(f"EXPLAIN {sql}".encode(), params).fetchall()
            return "\n".join(row[0] for row in rows)
    with sqlite3.connect(database_url.removeprefix("sqlite:///")) as file:
        rows = file.execute(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()
    return "\n".join(row[-1] for row in rows)


def test_dead_letters_are_found_without_reading_what_was_delivered(database_url: str) -> None:
    elsewhere = "http://127.0.0.1:2"
    write_dead_letters(database_url, elsewhere, 20_000, service="done", state="delivered")
    write_dead_letters(database_url, elsewhere, 1_000, service="b")
    write_dead_letters(database_url, NOBODY, 20, service="c")
    failed = CallbackState.FAILED
    page = {"before": 10**9, "most": 100}
    batch = {"as_of": 2 * 10**12, "most": 500}
    here = {"destination": NOBODY}
    for statement, params, index in (
        (listing(failed, frozenset()), page, "callback_dead"),
        (listing(failed, frozenset(here)), page | here, "callback_dead_of_destination"),
        (dead_letters(frozenset()), batch, "callback_dead"),
        (dead_letters(frozenset(here)), batch | here, "callback_dead_of_destination"),
        (dead_letter_count(frozenset()), batch, "callback_dead"),
        (dead_letter_count(frozenset(here)), batch | here, "callback_dead_of_destination"),
        (BACKLOG_BY_DESTINATION, {}, "callback_dead"),
        (BACKLOG_OF_DESTINATION, {"name": NOBODY}, "callback_dead_of_destination"),
    ):
        used = {name: value for name, value in params.items() if f":{name}" in statement.sql}
        plan = plan_of(database_url, statement.sql, used)
        read = [line for line in plan.splitlines() if "callback" in line]
        assert any(index in line for line in read), f"{statement.sql}\n{plan}"
        assert not any("Seq Scan on callback" in line for line in read), plan
        assert "SCAN callback" not in {line.strip() for line in read}, plan
