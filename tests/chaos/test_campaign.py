"""Replicas are killed and stopped, and the database restarted, under load: promises are kept."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from gateway.schema import migrate
from tests.chaos.campaign import Plan, Report, run
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(240)]

# When what happens, and to whom; another seed is another story.
SEED = int(os.environ.get("CHAOS_SEED", "20261122"))

SEVERAL = Plan(
    seed=SEED,
    seconds=45,
    operations=2000,
    replicas=3,
    kills=6,
    freezes=3,
    restarts=2,
    lease_seconds=4.0,  # longer than the database is away
    freeze_leases=(1.1, 1.5),
)
# A lease does not matter here: it is only what the length of the faults is measured by.
ONE = Plan(
    seed=SEED, seconds=40, operations=2000, replicas=1, kills=3, freezes=1, lease_seconds=1.5
)


async def test_several_replicas_on_postgresql(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    assert_kept(await run(SEVERAL, postgres_url, tmp_path, postgres))


async def test_one_process_on_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'campaign.db'}"
    await asyncio.to_thread(migrate, url)
    assert_kept(await run(ONE, url, tmp_path))


def assert_kept(report: Report) -> None:
    plan = report.plan
    assert not report.violations, report.text()
    assert report.settled, report.text()
    happened = Counter(fault.kind for fault in report.evidence.faults)
    assert happened == +Counter(kill=plan.kills, freeze=plan.freezes, restart=plan.restarts)
    assert len(report.evidence.operations) == plan.operations
    assert not report.repeats_too_much, report.text()
    assert set(report.exit_codes) == {0}, report.text()
