"""SIGTERM: who waits is answered, what runs may end, the rest continues with the next process."""

import asyncio
import signal
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import Crashing, has_run, keys_of
from tests.chaos.services import SERVICE, allow, effects_of, steps_of
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio

# What waits for an hour would otherwise have left before.
STAYS_IN_MEMORY = {"NEXUS_GATEWAY_SUSPEND_AFTER_SECONDS": "7200"}


async def test_an_operation_that_waits_is_handed_on_without_its_cleanup(crashing: Crashing) -> None:
    await crashing.kill9()
    await crashing.start(**STAYS_IN_MEMORY)
    job = crashing.job("asleep")
    token = await crashing.start_operation("asleep", job)
    await crashing.recorded(token, "effect#1", "sleep#1")
    assert await crashing.terminate() == 0
    assert steps_of(job) == ["begun"]

    await crashing.start(**STAYS_IN_MEMORY)

    async def taken_up() -> dict[str, Any] | None:
        operation = await crashing.show(token)
        return operation if operation["state"] == "running" else None

    assert keys_of(await eventually(taken_up)) == ["effect#1", "sleep#1"]
    await crashing.cancel("asleep", token)
    assert (await crashing.ended(token))["state"] == "canceled"
    assert steps_of(job) == ["begun", "cleanup"]


async def test_a_running_step_ends_and_the_next_process_goes_on_after_it(
    crashing: Crashing,
) -> None:
    job = crashing.job("in_step")
    token = await crashing.start_operation("in_step", job)
    await has_run(job, "go")
    first = crashing.process
    assert first is not None
    draining = asyncio.create_task(crashing.terminate())
    assert await asyncio.to_thread(first.wait_for_log, "draining") is not None
    assert first.process.poll() is None
    allow(job, "go")
    assert await draining == 0

    await crashing.start()
    assert (await crashing.ended(token))["state"] == "succeeded"
    go, _ = effects_of(job)
    assert go.pid == first.process.pid
    assert steps_of(job) == ["go", "after"]


async def test_a_step_that_does_not_end_in_time_runs_again(crashing: Crashing) -> None:
    await crashing.kill9()
    await crashing.start(NEXUS_GATEWAY_DRAIN_SECONDS="0.3")
    job = crashing.job("endless")
    token = await crashing.start_operation("in_step", job)
    await has_run(job, "go")
    assert await crashing.terminate() == 0

    await crashing.start()
    allow(job, "go")
    assert (await crashing.ended(token))["state"] == "succeeded"
    assert steps_of(job) == ["go", "go", "after"]


async def test_who_waits_is_answered(crashing: Crashing) -> None:
    token = await crashing.start_operation("asleep", crashing.job("one"))
    another = crashing.job("another")
    url = f"{crashing.base_url}/services/{SERVICE}/asleep"
    async with httpx.AsyncClient(timeout=30.0) as http:
        result = asyncio.create_task(
            http.get(f"{url}/result", params={"token": token, "wait": "25s"})
        )
        start = asyncio.create_task(
            http.post(url, json=another.model_dump(), headers={"Prefer": "wait=25"})
        )
        await has_run(another, "begun")
        assert not result.done()
        assert await crashing.terminate() == 0
        assert (await result).status_code in {408, 412}
        started = await start
        assert (started.status_code, started.json()["state"]) == (201, "running")


async def test_an_interrupt_from_the_keyboard_drains_too(crashing: Crashing) -> None:
    token = await crashing.start_operation("asleep", crashing.job("asleep"))
    await crashing.recorded(token, "sleep#1")
    assert crashing.process is not None
    crashing.process.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(crashing.process.process.wait, 20) == 0
