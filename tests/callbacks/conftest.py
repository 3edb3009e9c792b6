"""Fixtures of the callbacks' tests; `office.py` and `peers.py` have what they are made of."""

import functools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.schema import migrate
from tests.callbacks.office import Office, Place
from tests.callbacks.peers import Scene

OpenOffice = Callable[..., Awaitable[Office]]


@functools.cache
def _fresh_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        migrate(f"sqlite:///{path}")
        return path.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the gateway's schema; the test runs once on each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    path = tmp_path / "x.db"
    path.write_bytes(_fresh_file())
    return f"sqlite:///{path}"


@pytest.fixture
async def place(database_url: str) -> AsyncIterator[Place]:
    """Where that database is."""
    place = Place(database_url)
    yield place
    await place.aclose()


@pytest.fixture
async def open_office(place: Place) -> AsyncIterator[OpenOffice]:
    """Opens a delivery service; they all close with the test."""
    offices: list[Office] = []

    async def open_one(**options: Any) -> Office:
        office = Office(place, **options)
        offices.append(office)
        await office.open()
        return office

    yield open_one
    if offices and not offices[-1].service.closed:
        assert await offices[-1].not_looked_for() == []
    for office in offices:
        await office.close(0.1)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Starts peers and senders; they all close with the test."""
    async with Scene.open() as scene:
        yield scene
