"""Fixtures for every test, and how tests run side by side; see `tests/support` for the rest."""

import os
from collections.abc import AsyncIterator

import pytest

from tests.support.callback_receiver import CallbackReceiver
from tests.support.postgres import postgres, postgres_url

__all__ = ["anyio_backend", "postgres", "postgres_url", "receiver"]


# Each process has its own PostgreSQL, Temporal server and gateways.
_MOST_PROCESSES = 4


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` means: about half of all tests' time is waiting."""
    return min(len(os.sched_getaffinity(0)) + 1, _MOST_PROCESSES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the campaigns: one process then waits in them while the others are busy."""
    items.sort(key=lambda item: "/tests/chaos/" not in item.path.as_posix())


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def receiver() -> AsyncIterator[CallbackReceiver]:
    """A receiver of completions, listening."""
    async with CallbackReceiver() as listening:
        yield listening
