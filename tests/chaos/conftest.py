"""What the tests work with: a gateway that they kill, and its answers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients import NexusClient, RetryPolicy
from tests.chaos.services import SERVICE, Job, steps_of
from tests.support.eventually import eventually
from tests.support.gateway_process import GatewayProcess

TARGET = "tests.chaos.services:services"
# As patient as a caller that outlives every crash, and quick to come back.
PATIENT = RetryPolicy(first_delay=0.02, max_delay=0.2)
PATIENCE_SECONDS = 60.0


class Crashing:
    """One gateway over one file, on one port, through any number of processes."""

    def __init__(
        self,
        database: Path,
        target: str = TARGET,
        *options: str,
        port: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.database = database
        self._target = target
        self._options = options
        self._env = dict(env or {})
        self.folder = database.parent  # where the steps leave their lines
        self.process: GatewayProcess | None = None
        self.base_url = ""
        self._port = port
        self._http = httpx.AsyncClient()
        self._nexus: NexusClient | None = None

    async def start(self, **env: str) -> GatewayProcess:
        """Start a process; the first picks the port, which the later ones take."""
        if self.process is not None:
            await self.kill9()  # it may have ended already; its log is closed then
        self.process = await asyncio.to_thread(
            GatewayProcess.start,
            self._target,
            self.database,
            "--allow-private-callbacks",
            *self._options,
            env={**self._env, **env},
            port=self._port,
            measured=False,
        )
        self.base_url, self._port = self.process.base_url, self.process.port
        return self.process

    @property
    def runs(self) -> bool:
        """Whether there is a process that has not ended."""
        return self.process is not None and self.process.process.poll() is None

    async def kill9(self) -> None:
        """End the process at once."""
        assert self.process is not None
        await asyncio.to_thread(self.process.kill9)

    async def restart(self) -> GatewayProcess:
        """Kill the process and start the next one."""
        return await self.start()

    async def terminate(self) -> int:
        """Let the process drain and return its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.terminate)

    def job(self, key: str) -> Job:
        return Job(folder=str(self.folder), key=key)

    @property
    def nexus(self) -> NexusClient:
        """A client that repeats its requests until the gateway is back."""
        if self._nexus is None:
            self._nexus = NexusClient(
                f"{self.base_url}/services", retry=PATIENT, timeout=PATIENCE_SECONDS
            )
        return self._nexus

    async def aclose(self) -> None:
        """Let the process drain, and close the connections to it."""
        if self.process is not None:
            await self.terminate()
        await self._http.aclose()
        if self._nexus is not None:
            await self._nexus.aclose()

    async def show(self, token: str) -> dict[str, Any]:
        """Ask the operators' API for an operation."""
        shown: dict[str, Any] = await self._get(f"/api/v1/operations/{token}")
        return shown

    async def list(self) -> list[dict[str, Any]]:
        """Ask the operators' API for all operations, 1000 at most."""
        listed: list[dict[str, Any]] = (await self._get("/api/v1/operations?limit=1000"))[
            "operations"
        ]
        return listed

    async def recorded(self, token: str, *keys: str) -> dict[str, Any]:
        """Wait until the journal has these keys."""

        async def has_them() -> dict[str, Any] | None:
            operation = await self.show(token)
            return operation if set(keys) <= set(keys_of(operation)) else None

        return await eventually(has_them)

    async def ended(self, token: str) -> dict[str, Any]:
        """Wait until an operation has ended."""

        async def has_ended() -> dict[str, Any] | None:
            operation = await self.show(token)
            return None if operation["closed_at"] is None else operation

        return await eventually(has_ended)

    async def start_operation(self, operation: str, job: Job, **options: Any) -> str:
        """Start an operation and return its token."""
        handle = await self.nexus.start((SERVICE, operation), job, **options)
        assert handle.token is not None
        return handle.token

    async def cancel(self, operation: str, token: str) -> None:
        """Cancel an operation as its caller."""
        await self.nexus.handle(SERVICE, operation, token).cancel()

    async def _get(self, path: str) -> Any:
        answer = await self._http.get(self.base_url + path)
        assert answer.status_code == 200, answer.text
        return answer.json()


def keys_of(operation: dict[str, Any]) -> list[str]:
    """Return the keys of an operation's journal, in order."""
    return [step["key"] for step in operation["steps"]]


async def has_run(job: Job, step: str, *, times: int = 1) -> None:
    """Wait until a step has begun, so often, before anything of it is recorded."""

    async def begun() -> bool | None:
        return steps_of(job).count(step) >= times or None

    await eventually(begun)


@pytest.fixture(scope="module")
async def one_file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crashing]:
    crashing = Crashing(tmp_path_factory.mktemp("chaos") / "chaos.db")
    yield crashing
    await crashing.aclose()


@pytest.fixture
async def crashing(one_file: Crashing, tmp_path: Path) -> Crashing:
    """A gateway that runs, with a folder for this test; the file is that of its whole module."""
    one_file.folder = tmp_path
    if not one_file.runs:
        await one_file.start()
    return one_file
