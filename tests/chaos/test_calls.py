"""Two gateways that call one another, both killed at random: every call has its result, once."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.calling_services import SERVICE
from tests.chaos.conftest import Crashing
from tests.chaos.services import Job, effects_of
from tests.support.eventually import eventually
from tests.support.gateway_process import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(180)]

SEED = int(os.environ.get("CHAOS_SEED", "20251010"))
OPERATIONS = 30  # started on each gateway, each with two calls of the other
CLIENTS = 8
KILLS = 5
ENDS_WITHIN_SECONDS = 90.0

TARGET = "tests.chaos.calling_services:services"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[Crashing]]:
    """Two gateways, each of which knows the other's address as the endpoint `other`."""
    ports = [free_port(), free_port()]
    gateways = []
    for own, other in (ports, ports[::-1]):
        folder = tmp_path / str(own)
        folder.mkdir()
        gateways.append(
            Crashing(
                folder / "nexus.db",
                TARGET,
                "--public-url",
                f"http://127.0.0.1:{own}",
                port=own,
                env={
                    "NEXUS_GATEWAY_ENDPOINTS__OTHER__URL": f"http://127.0.0.1:{other}/services",
                    # Each is away again and again: the other asks how it is at once.
                    "NEXUS_GATEWAY_CALLBACKS__BREAKER_SECONDS": "0.5",
                },
            )
        )
    for gateway in gateways:
        await gateway.start()
    yield gateways
    for gateway in gateways:
        await gateway.aclose()


async def test_every_call_has_its_result_once(pair: list[Crashing]) -> None:
    chance = random.Random(SEED)
    done = 0
    progress = asyncio.Condition()
    results: dict[tuple[int, str], Any] = {}

    async def client(number: int, jobs: list[Job]) -> None:
        nonlocal done
        nexus = pair[number].nexus
        while jobs:
            job = jobs.pop()
            handle = await nexus.start((SERVICE, "outer"), job, request_id=job.key)
            results[number, job.key] = await _result(handle)
            async with progress:
                done += 1
                progress.notify_all()

    moments = sorted(chance.sample(range(2, OPERATIONS * 2 - 10), KILLS))
    async with asyncio.TaskGroup() as running:
        for number, gateway in enumerate(pair):
            jobs = [gateway.job(f"op-{number}-{n}") for n in range(OPERATIONS)]
            for _ in range(CLIENTS):
                running.create_task(client(number, jobs))
        for moment in moments:
            async with asyncio.timeout(ENDS_WITHIN_SECONDS), progress:
                while done < moment:
                    await progress.wait()
            await asyncio.sleep(chance.uniform(0, 0.05))  # anywhere in the calls that run now
            await chance.choice(pair).restart()

    for number, gateway in enumerate(pair):
        other = pair[1 - number]
        inner = {o["token"]: o for o in await _ended(other) if o["operation"] == "inner"}
        assert len(inner) == 2 * OPERATIONS  # started once for each call
        assert {o["state"] for o in inner.values()} == {"succeeded"}
        told: list[str] = []
        for n in range(OPERATIONS):
            key = f"op-{number}-{n}"
            both = results[number, key]
            told += both
            # `inner` ran at the other side, and left its lines where its caller told it to.
            effects = [e for e in effects_of(gateway.job(key)) if e.step == "inner"]
            assert set(both) <= {effect.nonce for effect in effects}
        recorded = [await _result_of(other, token) for token in inner]
        assert sorted(told) == sorted(recorded)  # each result reached one call


async def _result(handle: Any) -> Any:
    async with asyncio.timeout(ENDS_WITHIN_SECONDS):
        return await handle.result()


async def _ended(gateway: Crashing) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]] | None:
        operations = await gateway.list()
        return operations if all(o["closed_at"] is not None for o in operations) else None

    return await eventually(ask, timeout_seconds=ENDS_WITHIN_SECONDS)


async def _result_of(gateway: Crashing, token: str) -> str:
    [step] = [s for s in (await gateway.show(token))["steps"] if s["key"] == "effect#1"]
    return str(step["output"]["nonce"])
