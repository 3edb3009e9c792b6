from collections.abc import AsyncIterator

import pytest

from tests.clients.fake_clock import FakeClock
from tests.clients.scripted_server import ScriptedServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock()
