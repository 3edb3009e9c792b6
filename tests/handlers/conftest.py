from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.world import World

OpenWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def open_world(tmp_path: Path) -> AsyncIterator[OpenWorld]:
    """Opens engines, each on a file of its own, and ends them after the test."""
    worlds: list[World] = []

    async def open_one(*services: Any, **options: Any) -> World:
        world = World(tmp_path / f"{len(worlds)}.db", services, **options)
        worlds.append(world)
        await world.open()
        return world

    yield open_one
    for world in worlds:
        if world.is_open:
            await world.kill()


__all__: Sequence[str] = ["OpenWorld"]
