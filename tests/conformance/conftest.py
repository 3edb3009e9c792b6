"""One gateway process for all clauses; what it logs is watched."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conformance.services import DELIBERATE
from tests.conformance.world import World
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import GatewayProcess

CONFIG = """
endpoints:
  other:
    targets: ["tests.conformance.services:other_services"]
  "team/eu 1":
    targets: ["tests.conformance.services:durable_twin"]
"""


def tracebacks(log: str) -> list[str]:
    """Return the lines of a log that tell of an exception nobody meant to raise."""
    found = []
    for line in log.splitlines():
        if line.startswith("{"):
            exception = json.loads(line).get("exception")
            if exception is not None and DELIBERATE not in exception:
                found.append(exception)
        elif "Traceback" in line or "Error" in line:
            found.append(line)
    return found


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("conformance")
    config = folder / "gateway.yaml"
    config.write_text(CONFIG)
    with GatewayProcess.start(
        "tests.conformance.services:services",
        folder / "nexus.db",
        "--config",
        str(config),
        "--log-format",
        "json",
        "--allow-private-callbacks",
    ) as process:
        yield process
    assert tracebacks(process.log()) == []
    assert process.process.returncode == 0


@pytest.fixture
async def world(gateway: GatewayProcess, receiver: CallbackReceiver) -> AsyncIterator[World]:
    before = len(gateway.log())
    yield World(gateway.base_url, receiver)
    # No clause, whatever it sent, may have hit an error that nobody thought of.
    assert tracebacks(gateway.log()[before:]) == []
