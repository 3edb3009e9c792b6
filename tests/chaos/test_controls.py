"""Without one of its safeguards a gateway breaks its promises, and the campaign notices it."""

import sys
from pathlib import Path

import pytest

from tests.chaos.campaign import Plan, run
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]


def sabotaged(sabotage: str, plan: Plan) -> Plan:
    command = (sys.executable, "-m", "tests.chaos.saboteur", sabotage)
    return Plan(**{**vars(plan), "command": command})


# What wakes up in memory, when a process goes on that was stopped, has long been done by others.
WAITING = Plan(
    seed=1,
    seconds=10,
    operations=250,
    replicas=2,
    kills=0,
    freezes=3,
    lease_seconds=1.0,
    freeze_leases=(2.5, 3.0),
    kinds={"sleeping": 0.5, "gathering": 0.5},
    settles_within_seconds=15.0,
)
# What a process writes, when it goes on, finds the others in the midst of the same steps.
WORKING = Plan(
    seed=1,
    seconds=10,
    operations=120,
    replicas=2,
    kills=0,
    freezes=3,
    lease_seconds=1.0,
    freeze_leases=(1.5, 1.8),  # until the others have begun the steps, and not yet ended them
    kinds={"plain": 1.0},
    step_seconds=1.2,
    settles_within_seconds=30.0,
)


async def test_a_process_that_never_loses_its_lease_repeats_what_is_recorded(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    report = await run(sabotaged("lease", WAITING), postgres_url, tmp_path, postgres)
    broken = {violation.promise for violation in report.violations}
    assert "no_recorded_step_ran_again" in broken, report.text()


async def test_writes_without_a_fence_mix_what_two_owners_did(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    report = await run(sabotaged("fence", WORKING), postgres_url, tmp_path, postgres)
    broken = {violation.promise for violation in report.violations}
    assert "what_counts_was_recorded" in broken, report.text()


async def test_the_same_with_both_keeps_every_promise(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    report = await run(WORKING, postgres_url, tmp_path, postgres)
    assert not report.violations, report.text()
