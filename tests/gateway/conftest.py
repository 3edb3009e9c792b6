import functools
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.desk import OpenDesk, open_desk_on
from tests.gateway.services import TARGET
from tests.support.gateway_process import GatewayProcess

GREETING = """
import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation


@nexusrpc.service(name="greeting")
class Greeting:
    hello: nexusrpc.Operation[str, str]


@service_handler(service=Greeting)
class GreetingHandler:
    @sync_operation
    async def hello(self, ctx: StartOperationContext, name: str) -> str:
        return f"hello {name}"


services = [GreetingHandler()]
"""


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("NEXUS_GATEWAY_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, made the current one; what was imported from it is forgotten after."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that serves `tests.gateway.services`, for the commands that call one."""
    folder = tmp_path_factory.mktemp("lab")
    with GatewayProcess.start(TARGET, folder / "nexus.db", cwd=folder) as process:
        yield process


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database; the test runs once on each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/nexus.db"


@pytest.fixture
def open_desk(database_url: str) -> OpenDesk:
    """Opens a gateway on that database."""
    return functools.partial(open_desk_on, database_url)
