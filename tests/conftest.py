"""Fixtures for every test; see `tests/support` for what they are made of."""

from collections.abc import AsyncIterator

import pytest

from tests.support.callback_receiver import CallbackReceiver
from tests.support.postgres import postgres, postgres_url

__all__ = ["anyio_backend", "postgres", "postgres_url", "receiver"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def receiver() -> AsyncIterator[CallbackReceiver]:
    """A receiver of completions, listening."""
    async with CallbackReceiver() as listening:
        yield listening
