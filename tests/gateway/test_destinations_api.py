"""`/api/v1/destinations`: how each is, and holding it back without losing anything."""

from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from callbacks.outbox import callback
from tests.gateway.dead_letters import write_dead_letters
from tests.gateway.desk import Desk, OpenDesk, open_desk_on
from tests.support.callback_receiver import Answer, CallbackReceiver
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000


class MakeOlder:
    """A write that has all deadlines come so many milliseconds earlier."""

    subject = None
    _statement = Statement(
        sa.update(callback).values(deadline_at=callback.c.deadline_at - sa.bindparam("by"))
    )

    def __init__(self, by_ms: int) -> None:
        self._by_ms = by_ms

    async def apply(self, tx: Transaction) -> int:
        return await tx.execute(self._statement, {"by": self._by_ms})


async def standing(desk: Desk, name: str, state: str) -> dict[str, Any]:
    """Wait until a destination is in a state, and return it."""

    async def ask() -> dict[str, Any] | None:
        found = [d for d in await desk.destinations(state=state) if d["name"] == name]
        return found[0] if found else None

    return await eventually(ask)


async def test_the_worst_comes_first(open_desk: OpenDesk, database_url: str) -> None:
    write_dead_letters(database_url, "http://z.example", 3)
    async with (
        open_desk(breaker_failures=2) as desk,
        CallbackReceiver(lambda _: Answer(500)) as broken,
        CallbackReceiver(lambda _: Answer(500)) as shaky,
        CallbackReceiver(lambda _: Answer(503, {"Retry-After": "60"})) as busy,
    ):
        await desk.post("destinations/disable", {"destination": "http://a.example"})
        names = [each.url("") for each in (broken, shaky, busy)]
        for receiver in (broken, broken, shaky, busy):
            await desk.of(await desk.start("end", "null", receiver.url()), "due")
        for name, state in zip(names, ("open", "failing", "waiting"), strict=True):
            await standing(desk, name, state)
        found = await desk.destinations()
        assert [(d["state"], d["name"]) for d in found] == [
            ("open", names[0]),
            ("disabled", "http://a.example:80"),
            ("waiting", names[2]),
            ("failing", names[1]),
            ("sound", "http://z.example:80"),
        ]
        open_, disabled, waiting, failing, sound = found
        assert [(d["due"], d["in_flight"], d["failed"]) for d in found] == [
            (2, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 3),
        ]  # fmt: skip
        assert (open_["failures"], open_["openings"]) == (2, 1)
        assert (failing["failures"], failing["openings"]) == (1, 0)
        since = {
            key: [d["name"] for d in found if d[key] is not None]
            for key in ("open_until", "not_before", "disabled_at", "oldest_due_at")
        }
        assert since == {
            "open_until": [open_["name"]],
            "not_before": [waiting["name"]],
            "disabled_at": [disabled["name"]],
            "oldest_due_at": [open_["name"], waiting["name"], failing["name"]],
        }
        assert sound["probe_until"] is None


async def test_a_disabled_destination_keeps_its_deliveries_and_loses_none(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    name = receiver.url("")
    async with open_desk(max_age_seconds=7200) as desk:
        disabled = await desk.post(
            "destinations/disable", {"destination": receiver.url("/any?where")}
        )
        assert (disabled["name"], disabled["state"], disabled["due"]) == (name, "disabled", 0)
        again = await desk.post("destinations/disable", {"destination": name})
        assert again == disabled
        tokens = [await desk.start("end", "null", receiver.url(f"/{n}")) for n in range(30)]
        parked = [await desk.of(token, "due") for token in tokens]
        assert {c["waits_for"] for c in parked} == {"disabled"}
        assert receiver.requests == []
        # They wait for so long that they are too old by far, and are kept all the same.
        await desk.here.gateway.parts.database.write(MakeOlder(7200 * 1000))
        await desk.here.gateway.parts.delivery.aging.look()
        assert [d["due"] for d in await desk.destinations(state="disabled")] == [30]

        # What fails from now on may be tried again for as long as if it were new.
        receiver.will_answer(*[429] * 30)
        enabled = await desk.post("destinations/enable", {"destination": name})
        assert (enabled["name"], enabled["state"], enabled["disabled_at"]) == (name, "sound", None)
        await receiver.received(30)
        assert {r.path for r in receiver.requests} == {f"/{n}" for n in range(30)}

        async def all_failed_once() -> list[dict[str, Any]] | None:
            due = await desk.callbacks(state="due")
            return due if [c["retries"] for c in due] == [1] * 30 else None

        tried = await eventually(all_failed_once)
        assert min(c["deadline_at"] for c in tried) > max(c["deadline_at"] for c in parked)


async def test_more_than_one_chunk_is_postponed(open_desk: OpenDesk, database_url: str) -> None:
    count = 2_500
    async with CallbackReceiver(lambda _: Answer(429)) as receiver:
        name = receiver.url("")
        write_dead_letters(database_url, receiver.url(), count)
        async with open_desk() as desk:
            await desk.post("destinations/disable", {"destination": name})
            replayed = await desk.replay(all=True, limit=5000)
            assert replayed["replayed"] == count
            await desk.here.gateway.parts.database.write(MakeOlder(1000 * HOUR_MS))
            await desk.post("destinations/enable", {"destination": name})
            await receiver.received(count)

            async def settled() -> dict[str, Any] | None:
                [found] = await desk.destinations()
                return found if found["due"] + found["failed"] == count else None

            # What is too old would be given up by its first failure.
            assert (await eventually(settled))["failed"] == 0
    assert len({r.path for r in receiver.requests}) == count


async def test_every_gateway_of_a_database_hears_of_it(
    postgres_url: str, receiver: CallbackReceiver
) -> None:
    name = {"destination": receiver.url("")}
    async with open_desk_on(postgres_url) as one, open_desk_on(postgres_url) as other:
        await one.post("destinations/disable", name)

        async def parked() -> bool | None:
            return other.here.gateway.parts.delivery.holds.holds(receiver.url("")) or None

        await eventually(parked)
        tokens = [await desk.start("end", "null", receiver.url()) for desk in (one, other, other)]
        for token in tokens:
            assert (await one.of(token, "due"))["attempts"] == 0
        assert receiver.requests == []
        await other.post("destinations/enable", name)
        await receiver.received(3)
        for token in tokens:
            await one.of(token, "delivered")


async def test_an_open_breaker_is_closed_by_enabling(
    open_desk: OpenDesk, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(500)
    async with open_desk(breaker_failures=1, first_retry_seconds=0.01) as desk:
        token = await desk.start("end", "null", receiver.url())
        await standing(desk, receiver.url(""), "open")
        await desk.post("destinations/enable", {"destination": receiver.url("")})
        await desk.of(token, "delivered")
        assert await desk.destinations(state="open") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"destination": "caller.example"}', "destination: must begin with http:// or https://"),
        ('{"destination": "https://user@x"}', "destination: must not hold a user name"),
        ('{"destination": "https://x:99999"}', "destination: the port must be a number"),
        ('{"destination": 7}', 'send {"destination": "https://host:443"}'),
        ('{"destination": "https://x", "more": 1}', 'send {"destination": "https://host:443"}'),
        ("{}", 'send {"destination": "https://host:443"}'),
        ("", "the body is not valid JSON"),
    ],
)
async def test_what_is_no_destination(body: str, said: str, open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        for verb in ("disable", "enable"):
            status, message = await desk.refused("POST", f"destinations/{verb}", content=body)
            assert status == 400
            assert message.startswith(said)
        assert await desk.destinations() == []
        assert await desk.refused("GET", "destinations?state=bad") == (
            400,
            "state is one of open, half_open, disabled, waiting, failing, sound",
        )
