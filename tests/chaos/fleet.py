"""Gateways as real processes on one database, and what befalls them."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.chaos.witness import FOLDER, now_ms
from tests.support.gateway_process import COMMAND, GatewayNotStarted, GatewayProcess
from tests.support.postgres import PostgresServer

TARGET = "tests.chaos.workload:services"

_TRIES = 10
_TRY_AGAIN_SECONDS = 0.3

# One that is struck as soon as it is up gets nothing done; what that leads to is the end of
# operations that take their process with them, and another story.
_WELL_SECONDS = 1.5

FaultKind = Literal["kill", "freeze", "restart"]
Condition = Literal["up", "struck"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to a process, or to the database; milliseconds since 1970."""

    kind: FaultKind
    pid: int | None  # None: the database
    began_at: int
    ended_at: int


@dataclass
class Replica:
    """One gateway through any number of processes, all on one port."""

    number: int
    process: GatewayProcess
    base_url: str
    condition: Condition = "up"
    up_since: float = field(default_factory=time.monotonic)


@dataclass
class Fleet:
    """Several replicas on one database.

    Args:
        database: The URL of the database.
        folder: Where steps leave what they did, and processes their logs.
        chance: Decides what happens to whom.
        lease_seconds: How long a replica that is gone keeps what it owns.
        server: The server to restart, where there is one.
        command: What is run instead of the gateway's own command.
        env: Further settings.
    """

    database: str
    folder: Path
    chance: random.Random
    lease_seconds: float
    server: PostgresServer | None = None
    command: Sequence[str] = (str(COMMAND),)
    env: Mapping[str, str] = field(default_factory=dict)
    freeze_leases: tuple[float, float] = (1.2, 2.2)  # how many leases a freeze lasts
    replicas: list[Replica] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    logs: dict[int, str] = field(default_factory=dict)  # of the processes that ended, by pid

    async def start(self, count: int) -> None:
        """Start the processes."""
        processes = await asyncio.gather(*(self._launch(0) for _ in range(count)))
        self.replicas = [
            Replica(number, process, process.base_url) for number, process in enumerate(processes)
        ]

    async def stop(self) -> list[int]:
        """Let every process drain and return their exit codes."""
        codes = await asyncio.gather(
            *(asyncio.to_thread(replica.process.terminate, 40.0) for replica in self.replicas)
        )
        for replica in self.replicas:
            self._keep_log(replica.process)
        return codes

    def abandon(self) -> None:
        """Kill what still runs; for the way out of a test that failed."""
        for replica in self.replicas:
            replica.process.kill9()
            self._keep_log(replica.process)

    async def strike(self, kind: FaultKind) -> None:
        """Have something happen to a replica that is well, and wait until it is well again."""
        if kind == "restart":
            await self._restart_database()
            return
        replica = await self._victim()
        replica.condition = "struck"
        try:
            if kind == "kill":
                await self._kill(replica)
            else:
                await self._freeze(replica)
        finally:
            replica.condition = "up"
            replica.up_since = time.monotonic()

    # ------------------------------------------------------------ what happens

    async def _victim(self) -> Replica:
        while not (well := [r for r in self.replicas if _is_well(r)]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return self.chance.choice(well)

    async def _kill(self, replica: Replica) -> None:
        away_seconds = self.chance.uniform(0.2, 1.5) * self.lease_seconds
        killed = replica.process
        began_at = now_ms()
        await asyncio.to_thread(killed.kill9)
        self._keep_log(killed)
        await asyncio.sleep(away_seconds)
        replica.process = await self._relaunch(int(replica.base_url.rpartition(":")[2]))
        self.faults.append(Fault("kill", killed.process.pid, began_at, now_ms()))

    async def _freeze(self, replica: Replica) -> None:
        seconds = self.chance.uniform(*self.freeze_leases) * self.lease_seconds
        frozen = replica.process
        began_at = now_ms()
        frozen.freeze()
        await asyncio.sleep(seconds)
        frozen.thaw()
        self.faults.append(Fault("freeze", frozen.process.pid, began_at, now_ms()))

    async def _restart_database(self) -> None:
        assert self.server is not None
        began_at = now_ms()
        await asyncio.to_thread(self.server.restart)
        self.faults.append(Fault("restart", None, began_at, now_ms()))

    async def _relaunch(self, port: int) -> GatewayProcess:
        """Start a process until it stays, as its supervisor would: the database may be down."""
        for _ in range(_TRIES if self.server is not None else 0):
            try:
                return await self._launch(port)
            except GatewayNotStarted:
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
        return await self._launch(port)

    async def _launch(self, port: int) -> GatewayProcess:
        return await asyncio.to_thread(
            GatewayProcess.start,
            TARGET,
            self.database,
            "--allow-private-callbacks",
            port=port,
            command=self.command,
            measured=False,
            env={
                FOLDER: str(self.folder),
                "NEXUS_GATEWAY_LEASE_SECONDS": str(self.lease_seconds),
                "NEXUS_GATEWAY_SUSPEND_AFTER_SECONDS": "1",
                **self.env,
            },
        )

    def _keep_log(self, process: GatewayProcess) -> None:
        self.logs[process.process.pid] = process.log()
        (self.folder / f"{process.process.pid}.log").write_text(process.log())


def _is_well(replica: Replica) -> bool:
    return replica.condition == "up" and time.monotonic() - replica.up_since > _WELL_SECONDS
