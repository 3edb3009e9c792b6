"""A campaign: real gateways, a steady load, and faults in the midst of it; then the reckoning.

`python -m tests.chaos.campaign --seconds 600 --seed 7` runs one as long as that, on PostgreSQL and
on SQLite, and prints what came of it. The same seed decides on the same faults, though not on the
moment within a request at which each of them falls.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from gateway.schema import migrate
from tests.chaos.checks import Evidence, Violation, violations
from tests.chaos.database import Fetch, everything, reading, unfinished
from tests.chaos.fleet import FaultKind, Fleet
from tests.chaos.load import KINDS, Load
from tests.chaos.witness import runs_in
from tests.support.callback_receiver import HANG_UP, Answer, CallbackReceiver, Received
from tests.support.gateway_process import COMMAND
from tests.support.postgres import PostgresServer

MOST_REPEATED = 0.03  # of all steps

_LOOK_AGAIN_SECONDS = 0.25
_COMPARED = 40  # operations that every replica is asked for in full
_SHOWN_VIOLATIONS = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a campaign consists of.

    Attributes:
        seed: Decides what happens when, and to whom.
        seconds: How long operations are started, and faults happen.
        operations: How many are started.
        kills, freezes, restarts: How often each fault happens.
        lease_seconds: Of the replicas.
        settles_within_seconds: How long what was started may take after the last fault.
        command: What is run instead of the gateway's own command.
    """

    seed: int
    seconds: float
    operations: int
    replicas: int
    kills: int
    freezes: int
    restarts: int = 0
    lease_seconds: float = 3.0
    freeze_leases: tuple[float, float] = (1.2, 2.2)
    settles_within_seconds: float = 40.0
    step_seconds: float = 0.005
    kinds: Mapping[str, float] = field(default_factory=lambda: dict(KINDS))
    command: Sequence[str] = (str(COMMAND),)

    def faults(self, chance: random.Random) -> list[tuple[float, FaultKind]]:
        """Return what happens, and after how many seconds."""
        counts: dict[FaultKind, int] = {
            "kill": self.kills,
            "freeze": self.freezes,
            "restart": self.restarts,
        }
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        chance.shuffle(kinds)
        # Spread over the time, so that not all replicas are gone for all of it.
        slot = self.seconds * 0.9 / max(1, len(kinds))
        return [((n + chance.uniform(0.2, 1.0)) * slot, kind) for n, kind in enumerate(kinds)]


@dataclass(frozen=True)
class Report:
    """What came of a campaign."""

    plan: Plan
    evidence: Evidence
    violations: list[Violation]
    phases: Sequence[tuple[str, float]]  # how many seconds each part of it took
    settled: bool
    exit_codes: Sequence[int]
    folder: Path  # witness files and logs

    @property
    def repeated_share(self) -> float:
        """How many runs of steps there were beyond one for each, as a share."""
        return self.evidence.repeated / max(1, len(self.evidence.runs))

    @property
    def repeats_too_much(self) -> bool:
        """Whether more steps ran again than kills and freezes can explain.

        A database that is away for as long as a lease takes the leases of all replicas with it,
        and then every step under way runs again: how many that are says nothing.
        """
        outages = [f.ended_at - f.began_at for f in self.evidence.faults if f.pid is None]
        if max(outages, default=0) > self.plan.lease_seconds * 500:
            return False
        return self.repeated_share >= MOST_REPEATED

    @property
    def _away_seconds(self) -> float:
        away = [fault.ended_at - fault.began_at for fault in self.evidence.faults]
        return sum(away) / max(1, len(away)) / 1000

    def summary(self) -> list[tuple[str, str]]:
        """Return the rows of a table."""
        evidence = self.evidence
        faults = Counter(fault.kind for fault in evidence.faults)
        states = Counter(operation.state for operation in evidence.operations)
        asked = sum(call.asked for call in evidence.calls)
        repeated_callbacks = len(evidence.received) - len({r.path for r in evidence.received})
        return [
            ("seed", str(self.plan.seed)),
            ("operations", f"{len(evidence.operations)} of {len(evidence.calls)}"),
            ("ended", ", ".join(f"{n} {state}" for state, n in sorted(states.items()))),
            ("faults", ", ".join(f"{n} {kind}" for kind, n in sorted(faults.items()))),
            ("away", f"{self._away_seconds:.1f} s each on average"),
            ("requests", str(asked)),
            ("steps run", f"{len(evidence.runs)}, {evidence.repeated} of them again"),
            ("run again", f"{self.repeated_share:.2%}"),
            ("takeovers", str(sum(o.epoch - 1 for o in evidence.operations))),
            ("callbacks", f"{len(evidence.received)}, {repeated_callbacks} of them again"),
            ("seconds", ", ".join(f"{name} {took:.0f}" for name, took in self.phases)),
            ("violations", str(len(self.violations))),
        ]

    def text(self) -> str:
        """Return all of it for people."""
        lines = [f"{name:12} {value}" for name, value in self.summary()]
        by_promise = Counter(violation.promise for violation in self.violations)
        lines += [f"  {count} times {promise}" for promise, count in by_promise.items()]
        lines += [f"  {violation}" for violation in self.violations[:_SHOWN_VIOLATIONS]]
        return "\n".join(lines)


async def run(
    plan: Plan, database: str, folder: Path, server: PostgresServer | None = None
) -> Report:
    """Run a campaign on a database that has its schema and nothing in it.

    Args:
        plan: What happens.
        database: The URL of the database.
        folder: An empty folder for witness files and logs.
        server: What to restart; None for SQLite.
    """
    watch = _StopWatch()
    chance = random.Random(plan.seed)
    fleet = Fleet(
        database,
        folder,
        random.Random(chance.random()),
        plan.lease_seconds,
        server=server,
        command=plan.command,
        freeze_leases=plan.freeze_leases,
    )
    faults = plan.faults(random.Random(chance.random()))
    moody = random.Random(chance.random())
    try:
        async with (
            CallbackReceiver(lambda request: _moody_answer(moody, request)) as receiver,
            reading(database) as fetch,
        ):
            await fleet.start(plan.replicas)
            watch.done("start")
            load = Load(
                [replica.base_url for replica in fleet.replicas],
                receiver,
                random.Random(chance.random()),
                count=plan.operations,
                seconds=plan.seconds,
                kinds=dict(plan.kinds),
                step_seconds=plan.step_seconds,
            )
            await _load_and_strike(plan, fleet, load, faults)
            watch.done("load")
            settled = await _settle(fetch, plan.settles_within_seconds)
            watch.done("settle")
            operations = await everything(fetch)
            tokens = [operation.token for operation in operations]
            shown = await _shown(fleet, chance.sample(tokens, min(_COMPARED, len(tokens))))
            watch.done("compare")
            exit_codes = await fleet.stop()
            watch.done("drain")
            evidence = Evidence(
                calls=load.calls,
                operations=operations,
                runs=runs_in(folder),
                faults=fleet.faults,
                received=list(receiver.requests),
                shown=shown,
                logs=fleet.logs,
            )
    finally:
        fleet.abandon()
    found = violations(evidence)
    watch.done("check")
    return Report(plan, evidence, found, watch.phases, settled, exit_codes, folder)


class _StopWatch:
    def __init__(self) -> None:
        self.phases: list[tuple[str, float]] = []
        self._since = time.monotonic()

    def done(self, phase: str) -> None:
        now = time.monotonic()
        self.phases.append((phase, now - self._since))
        self._since = now


async def _load_and_strike(
    plan: Plan, fleet: Fleet, load: Load, faults: Sequence[tuple[float, FaultKind]]
) -> None:
    began = time.monotonic()
    async with asyncio.timeout(plan.seconds + plan.settles_within_seconds + 60.0):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            for at, kind in faults:
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                tasks.create_task(fleet.strike(kind))


async def _settle(fetch: Fetch, within_seconds: float) -> bool:
    """Wait until nothing is left to do; return whether that came."""
    deadline = time.monotonic() + within_seconds
    while await unfinished(fetch):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    return True


async def _shown(fleet: Fleet, tokens: Sequence[str]) -> dict[int, dict[str, str]]:
    """Ask every replica for the same operations."""
    shown: dict[int, dict[str, str]] = {}
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as http:
        for replica in fleet.replicas:
            answers: dict[str, Any] = {}
            for token in tokens:
                answer = await http.get(f"{replica.base_url}/api/v1/operations/{token}")
                answers[token] = answer.json()
            shown[replica.number] = {
                token: json.dumps(answer, sort_keys=True) for token, answer in answers.items()
            }
    return shown


def _moody_answer(chance: random.Random, request: Received) -> Answer:
    mood = chance.random()
    if mood < 0.01:
        return HANG_UP
    return Answer(503 if mood < 0.02 else 200)


# ---------------------------------------------------------------- the command


Which = Literal["postgresql", "sqlite"]


def long_plan(which: Which, seed: int, seconds: float) -> Plan:
    """Return a campaign of any length: so many operations a second, so many faults a minute."""
    several = which == "postgresql"
    minutes = seconds / 60
    return Plan(
        seed=seed,
        seconds=seconds,
        operations=round(40 * seconds),
        replicas=3 if several else 1,
        kills=max(1, round((8 if several else 5) * minutes)),
        freezes=max(1, round((4 if several else 2) * minutes)),
        restarts=max(1, round(3 * minutes)) if several else 0,
        settles_within_seconds=90.0,
    )


@contextlib.asynccontextmanager
async def _database(which: Which, folder: Path) -> AsyncIterator[tuple[str, PostgresServer | None]]:
    if which == "sqlite":
        url = f"sqlite:///{folder / 'campaign.db'}"
        await asyncio.to_thread(migrate, url)
        yield url, None
        return
    server = await asyncio.to_thread(PostgresServer.start)
    with server:
        yield server.fresh_database(), server


async def _main(which: Sequence[Which], seed: int, seconds: float) -> int:
    failed = False
    for each in which:
        folder = Path(tempfile.mkdtemp(prefix=f"nexus-chaos-{each}-"))
        say(f"{each}: seed {seed}, {seconds / len(which):.0f} s; logs in {folder}")
        async with _database(each, folder) as (url, server):
            report = await run(long_plan(each, seed, seconds / len(which)), url, folder, server)
        say(report.text())
        is_fine = report.settled and not report.violations and not report.repeats_too_much
        failed |= not is_fine
        say("held" if is_fine else f"NOT held; again with: make chaos CHAOS_SEED={seed}")
    return 1 if failed else 0


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what the arguments, or else CHAOS_SECONDS and CHAOS_SEED, ask for."""
    parser = argparse.ArgumentParser(description="Crash gateways and see what they promised kept.")
    environment = os.environ.get
    parser.add_argument("--seconds", type=float, default=environment("CHAOS_SECONDS") or 600.0)
    parser.add_argument("--seed", type=int, default=environment("CHAOS_SEED") or None)
    parser.add_argument("--database", choices=["postgresql", "sqlite", "both"], default="both")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**9) if asked.seed is None else asked.seed
    which: list[Which] = ["postgresql", "sqlite"] if asked.database == "both" else [asked.database]
    return asyncio.run(_main(which, seed, asked.seconds))


if __name__ == "__main__":
    sys.exit(main())
