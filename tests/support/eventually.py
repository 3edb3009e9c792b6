"""Waiting for what happens in another process: a condition that is asked for, with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_ASK_AGAIN_SECONDS = 0.02


async def eventually(ask: Callable[[], Awaitable[T | None]], *, timeout_seconds: float = 15.0) -> T:
    """Ask until there is an answer, and return it.

    Raises:
        TimeoutError: There was only None until then.
    """
    async with asyncio.timeout(timeout_seconds):
        while (answer := await ask()) is None:  # noqa: ASYNC110  # another process has no Event
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
    return answer
