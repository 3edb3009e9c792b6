"""Two gateways on one PostgreSQL: when one is killed, the other soon goes on with its work."""

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from tests.chaos.database import Ended, everything, reading
from tests.chaos.fleet import Fleet
from tests.chaos.witness import now_ms
from tests.chaos.workload import SERVICE
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

LEASE_SECONDS = 3.0
OPERATIONS = 40


async def test_the_operations_of_a_killed_gateway_continue_within_two_leases(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    fleet = Fleet(postgres_url, tmp_path, random.Random(0), LEASE_SECONDS)
    try:
        await fleet.start(2)
        killed, other = fleet.replicas
        tokens = await _start(killed.base_url)
        async with reading(postgres_url) as fetch:

            async def all_are_under_way() -> bool | None:
                return all(len(o.steps) >= 2 for o in await everything(fetch)) or None

            await eventually(all_are_under_way)
            await asyncio.to_thread(killed.process.kill9)
            killed_at = now_ms()

            async def all_went_on() -> list[Ended] | None:
                operations = await everything(fetch)
                went_on = all(o.steps and o.steps[-1].epoch == 2 for o in operations)
                return operations if went_on else None

            operations = await eventually(all_went_on, timeout_seconds=5 * LEASE_SECONDS)
        assert {operation.token for operation in operations} == set(tokens)
        for operation in operations:
            first = next(entry for entry in operation.steps if entry.epoch == 2)
            assert first.created_at - killed_at < 2 * LEASE_SECONDS * 1000
            assert operation.owner is not None
        assert other.process.process.poll() is None
    finally:
        fleet.abandon()


async def _start(base_url: str) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as http:
        answers = [
            await http.post(
                f"{base_url}/services/{SERVICE}/endless", json={"number": n, "step_seconds": 0.1}
            )
            for n in range(OPERATIONS)
        ]
    return [answer.json()["token"] for answer in answers]
