"""Ten thousand dead letters are replayed from the command line, whoever is killed meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway.commands import environment
from tests.gateway.dead_letters import write_dead_letters
from tests.gateway.services import TARGET
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import COMMAND, GatewayProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(180)]

DEAD = 10_000
ARRIVED_BEFORE_THE_KILL = 500
ENDS_WITHIN_SECONDS = 60.0


class Gateway:
    """A gateway that can be killed and comes back on its port."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "nexus.db"
        self._process: GatewayProcess | None = None
        self.database_url = f"sqlite:///{self._database}"
        self.url = ""

    async def start(self) -> None:
        port = 0 if self._process is None else self._process.port
        self._process = await asyncio.to_thread(
            GatewayProcess.start, TARGET, self._database, "--allow-private-callbacks", port=port
        )
        self.url = self._process.base_url

    async def kill9(self) -> None:
        assert self._process is not None
        await asyncio.to_thread(self._process.kill9)

    async def end(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.terminate)


@pytest.fixture
async def gateway(tmp_path: Path, receiver: CallbackReceiver) -> AsyncIterator[Gateway]:
    """A gateway whose database holds ten thousand dead letters."""
    gateway = Gateway(tmp_path)
    write_dead_letters(gateway.database_url, receiver.url("/done"), DEAD)
    await gateway.start()
    yield gateway
    await gateway.end()


@asynccontextmanager
async def replaying(gateway: Gateway) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the command, with the progress that a terminal shows."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, "callbacks", "replay", "--all", "--yes", "--batch", "100", "--url", gateway.url,
        env=environment({"FORCE_COLOR": "1"}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(ENDS_WITHIN_SECONDS):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def all_arrived(receiver: CallbackReceiver) -> None:
    missing = {f"/done/{n}" for n in range(1, DEAD + 1)}
    count = len(missing)
    async with asyncio.timeout(ENDS_WITHIN_SECONDS):
        while missing:
            arrived = await receiver.received(count, timeout_seconds=ENDS_WITHIN_SECONDS)
            missing -= {request.path for request in arrived}
            count = len(arrived) + 1
    assert {request.body for request in receiver.requests} == {b'"done"'}


async def test_the_gateway_is_killed(gateway: Gateway, receiver: CallbackReceiver) -> None:
    async with replaying(gateway) as command:
        await receiver.received(ARRIVED_BEFORE_THE_KILL)
        await gateway.kill9()
        await gateway.start()
        code, out, err = await ended(command)
    assert (code, out) == (0, f"replayed {DEAD}\n"), err
    assert err.count("waiting for the gateway: ") == 1
    assert err.count("the gateway answers again") == 1
    assert f"{DEAD}/{DEAD}" in err
    await all_arrived(receiver)


async def test_the_command_is_killed_and_run_again(
    gateway: Gateway, receiver: CallbackReceiver
) -> None:
    async with replaying(gateway) as command:
        await receiver.received(ARRIVED_BEFORE_THE_KILL)
        command.kill()
        await ended(command)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        counted = await http.post("/api/v1/callbacks/replay", json={"all": True, "dry_run": True})
    left = counted.json()["matching"]
    assert 0 < left < DEAD  # it was in the middle
    async with replaying(gateway) as command:
        code, out, err = await ended(command)
    assert (code, out) == (0, f"replayed {left}\n"), err
    await all_arrived(receiver)
    # No crash of the gateway's: each arrived once.
    assert len(receiver.requests) == DEAD
