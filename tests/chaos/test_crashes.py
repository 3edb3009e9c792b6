"""One crash at the worst moment each: cancel, deadline, compensation, delivery."""

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from tests.chaos.conftest import Crashing, has_run, keys_of
from tests.chaos.services import allow, steps_of
from tests.support.callback_receiver import CallbackReceiver
from tests.support.eventually import eventually
from tests.support.gateway_process import GatewayNotStarted

pytestmark = pytest.mark.anyio

AT_ONCE = 20
BREAKER_OPENS_AFTER = 5


async def test_a_second_gateway_on_the_same_file_is_refused(crashing: Crashing) -> None:
    second = Crashing(crashing.database)
    with pytest.raises(GatewayNotStarted) as refused:
        await second.start()
    await second.aclose()
    exit_code, *lines = str(refused.value).splitlines()
    assert exit_code == "exit code 1:"
    said = [line for line in lines if "served by another gateway" in line]
    assert len(said) == 1
    assert str(crashing.database) in said[0]
    assert "--database" in said[0]  # what to do instead
    assert "Traceback" not in str(refused.value)
    await crashing.start_operation("three_steps", crashing.job("unharmed"))


async def test_the_file_of_a_killed_gateway_is_free_at_once(crashing: Crashing) -> None:
    job = crashing.job("op")
    token = await crashing.start_operation("asleep", job)
    await crashing.recorded(token, "effect#1", "sleep#1")
    await crashing.restart()
    operation = await crashing.show(token)
    assert operation["state"] in {"running", "ready"}  # it leaves memory to sleep
    assert keys_of(operation) == ["effect#1", "sleep#1"]


async def test_a_cancel_that_was_answered_survives_the_crash(crashing: Crashing) -> None:
    jobs = [crashing.job(f"op-{n}") for n in range(AT_ONCE)]
    tokens = [await crashing.start_operation("asleep", job) for job in jobs]
    for token in tokens:
        await crashing.recorded(token, "sleep#1")

    cancels = [asyncio.create_task(crashing.cancel("asleep", token)) for token in tokens]
    # As soon as the first is answered: the others are anywhere on their way, and sent again.
    await asyncio.wait(cancels, return_when=asyncio.FIRST_COMPLETED)
    await crashing.restart()
    await asyncio.gather(*cancels)

    ends = [await crashing.ended(token) for token in tokens]
    assert {operation["state"] for operation in ends} == {"canceled"}
    for job, operation in zip(jobs, ends, strict=True):
        # The cleanup may have run when the crash came and run again, but only unrecorded.
        begun, *cleanups = steps_of(job)
        assert begun == "begun"
        assert set(cleanups) == {"cleanup"}
        assert keys_of(operation) == ["effect#1", "sleep#1", "interrupt", "effect#2"]


async def test_a_deadline_that_passes_while_down_fails_the_operation(
    crashing: Crashing, receiver: CallbackReceiver
) -> None:
    job = crashing.job("late")
    token = await crashing.start_operation(
        "asleep", job, operation_timeout=1.0, callback=receiver.url("/late")
    )
    operation = await crashing.recorded(token, "sleep#1")
    await crashing.kill9()
    deadline = datetime.fromisoformat(operation["deadline_at"])
    await asyncio.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds()))
    assert receiver.requests == []

    await crashing.start()
    ended = await crashing.ended(token)
    assert (ended["state"], ended["failure"]["message"]) == ("failed", "operation timed out")
    told = await receiver.one("/late")
    assert told.get("nexus-operation-state") == "failed"
    assert told.json()["message"] == "operation timed out"
    assert steps_of(job) == ["begun", "cleanup"]


@pytest.mark.parametrize("stage", ["packing", "waiting"])
async def test_a_compensation_goes_on_where_it_was(crashing: Crashing, stage: str) -> None:
    job = crashing.job(stage)
    token = await crashing.start_operation("compensating", job)
    if stage == "waiting":
        allow(job, "packed")
        await crashing.recorded(token, "sleep#1")
        await crashing.cancel("compensating", token)
    else:
        await crashing.recorded(token, "effect#1")
        await has_run(job, "packed")
        await crashing.cancel("compensating", token)
        allow(job, "packed")  # a thread's work counts, also when its operation is canceled
    before = await crashing.recorded(token, "undo#1")
    await has_run(job, "refund")
    await crashing.restart()
    await has_run(job, "refund", times=2)
    allow(job, "refund")
    ended = await crashing.ended(token)
    assert ended["state"] == "canceled"
    assert keys_of(ended) == [*keys_of(before), "effect_when#1", "effect#2"]
    undone = [f"undo {stage}", "refund", "refund", "undone"]
    assert steps_of(job) == ["booked", "packed", *undone]


async def test_branches_that_were_canceled_replay_alike(crashing: Crashing) -> None:
    job = crashing.job("branches")
    token = await crashing.start_operation("in_branches", job)
    await crashing.recorded(token, "1/sleep#1", "2/sleep#1")
    await crashing.cancel("in_branches", token)
    await has_run(job, "refund")
    await crashing.restart()
    allow(job, "refund")
    ended = await crashing.ended(token)
    assert ended["state"] == "canceled"
    steps = steps_of(job)
    assert sorted(set(steps)) == ["left", "refund", "right", "undo left", "undo right"]
    assert all(steps.count(name) == 1 for name in ("left", "right", "undo left", "undo right"))


async def test_a_receiver_that_was_down_gets_everything(
    crashing: Crashing, receiver: CallbackReceiver
) -> None:
    impatient = {"NEXUS_GATEWAY_CALLBACKS__BREAKER_SECONDS": "0.5"}
    await crashing.start(**impatient)
    port = urlsplit(receiver.url()).port
    assert port is not None
    await receiver.stop()
    jobs = [crashing.job(f"op-{n}") for n in range(AT_ONCE)]
    tokens = [
        await crashing.start_operation("three_steps", job, callback=receiver.url(f"/{job.key}"))
        for job in jobs
    ]
    for token in tokens:
        await crashing.ended(token)
    await crashing.start(**impatient)  # nor does a crash meanwhile change what is owed

    async def was_tried() -> bool | None:
        shown = [await crashing.show(token) for token in tokens]
        attempts = [delivery["attempts"] for each in shown for delivery in each["deliveries"]]
        assert len(attempts) == AT_ONCE
        # Then it is left alone, but for a probe now and then; the others wait without an attempt.
        return sum(attempts) > BREAKER_OPENS_AFTER or None

    await eventually(was_tried)
    await receiver.start(port)
    requests = await receiver.received(AT_ONCE, timeout_seconds=20.0)
    assert {request.path for request in requests} == {f"/{job.key}" for job in jobs}
    assert {request.get("nexus-operation-token") for request in requests} == set(tokens)
