"""A process that delivers what is due, and kills itself at the moment that it is told.

    python -m tests.chaos.postman DATABASE_URL [MOMENT]

It ends by itself once nothing is due or in flight any more.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from callbacks.claims import ClaimDue
from callbacks.database import Database, Write, open_database
from callbacks.delivery import DeliveryService, DeliverySettings
from callbacks.delivery_queries import BACKLOG
from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.egress import EgressPolicy
from callbacks.leases import Lease
from callbacks.outcomes import Arrived, Delivered, GiveUp, Retry
from callbacks.retry_schedule import RetryPolicy
from callbacks.sender import AiohttpSender
from clients.sender import SentResponse
from tests.support.eventually import eventually

T = TypeVar("T")

BEFORE_CLAIM, AFTER_CLAIM = "before claim", "after claim"
BEFORE_SEND, AFTER_SEND = "before send", "after send"
BEFORE_RECORD, AFTER_RECORD = "before record", "after record"
MOMENTS = (BEFORE_CLAIM, AFTER_CLAIM, BEFORE_SEND, AFTER_SEND, BEFORE_RECORD, AFTER_RECORD)

LEASE_SECONDS = 2.0  # what a killed process leaves is taken up after that


class _Fate:
    def __init__(self, moment: str) -> None:
        self._moment = moment

    def has_come(self, moment: str) -> None:
        if moment == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)


class _Mortal:
    """A database whose process may die before and after a write."""

    def __init__(self, real: Database, fate: _Fate) -> None:
        self._real = real
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        kind: type[Any] = type(write)
        if kind is ClaimDue:
            return self._between(write, BEFORE_CLAIM, AFTER_CLAIM, lambda got: got.deliveries)
        if kind in {Arrived, Delivered, GiveUp, Retry}:
            return self._between(write, BEFORE_RECORD, AFTER_RECORD, lambda _: True)
        return self._real.write(write)

    def _between(
        self, write: Write[T], before: str, after: str, counts: Callable[[Any], object]
    ) -> asyncio.Future[T]:
        self._fate.has_come(before)
        written = self._real.write(write)
        # Called before whoever awaits the write goes on.
        written.add_done_callback(
            lambda done: self._fate.has_come(after) if counts(done.result()) else None
        )
        return written


class _MortalSender:
    """A sender whose process may die before and after a post."""

    def __init__(self, real: AiohttpSender, fate: _Fate) -> None:
        self._real = real
        self._fate = fate

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        self._fate.has_come(BEFORE_SEND)
        answer = await self._real.post(url, headers, body, timeout=timeout)
        self._fate.has_come(AFTER_SEND)
        return answer

    async def aclose(self) -> None:
        await self._real.aclose()


async def _nothing_is_left(database: Database) -> bool | None:
    backlog = await database.fetch(BACKLOG, {})
    return all(count == 0 or state == "failed" for state, count, _ in backlog) or None


async def deliver(url: str, moment: str) -> None:
    """Deliver until nothing is left, or until the moment has come."""
    fate = _Fate(moment)
    database: Any = _Mortal(await open_database(url), fate)
    lease = Lease(database, seconds=LEASE_SECONDS)
    await lease.open()
    sender = _MortalSender(AiohttpSender(EgressPolicy(allow_private=True)), fate)
    # The same attempt is not repeated while a test looks at what the first one left.
    soon = DeliveryRules(DeliveryRule(retry=RetryPolicy(jitter=0)))
    service = DeliveryService(database, sender, DeliverySettings(rules=soon), lease=lease)
    await service.open()
    try:
        await eventually(partial(_nothing_is_left, database), timeout_seconds=50)
    finally:
        await service.close(1)
        await lease.close()
        await database.aclose()


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
