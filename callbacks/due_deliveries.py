"""Finds the deliveries that are due and takes them, as many as there is room for."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from callbacks.claims import ClaimDue
from callbacks.database import Database, DatabaseClosed
from callbacks.leases import Lease
from callbacks.outbox import Delivery

logger = logging.getLogger(__name__)

_CLAIM_AT_MOST = 256
_IDLE_SECONDS = 60.0
_SPREAD_SECONDS = 0.1
_AFTER_ERROR_SECONDS = 1.0
_WITHOUT_LEASE_SECONDS = 0.25
_NEVER_MS = 2**62


class DueDeliveries:
    """Claims deliveries when they are due, when told of some, and now and then.

    Args:
        database: Where the outbox is.
        lease: Of this process: nothing is claimed unless it holds.
        capacity: How many deliveries memory holds.
        probe_ms: How long the probe of an open breaker is waited for.
        room: How many more it has room for.
        busy: The destinations that have enough in memory.
        takes: How many more of a destination memory takes.
        submit: Takes the claimed ones.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        capacity: int,
        probe_ms: int,
        room: Callable[[], int],
        busy: Callable[[], list[str]],
        takes: Callable[[str], int],
        submit: Callable[[Sequence[Delivery]], None],
        now: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._lease = lease
        self._enough_room = max(1, capacity // 8)  # not one by one
        self._probe_ms = probe_ms
        self._room = room
        self._busy = busy
        self._takes = takes
        self._submit = submit
        self._now = now
        self._draw = draw
        self._wake = asyncio.Event()
        self._closing = False
        self._looks_again_at = _NEVER_MS  # milliseconds since 1970
        self._waits_for_room = False

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def due_at(self, at: int) -> None:
        """Look no later than at a time in milliseconds since 1970."""
        if at < self._looks_again_at:
            self._wake.set()

    def made_room(self) -> None:
        """Look again where the last look found no room and there is enough by now."""
        if self._waits_for_room and self._room() >= self._enough_room:
            self._waits_for_room = False
            self._wake.set()

    def close(self) -> None:
        """Let `run` return; what it is claiming right now is still submitted."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Look until closed."""
        while not self._closing:
            # Until this look is done, whatever becomes due later asks for another one.
            self._looks_again_at = _NEVER_MS
            try:
                wait_seconds = await self._look()
            except DatabaseClosed:
                return
            except Exception:
                logger.exception("cannot look for due deliveries")
                wait_seconds = _AFTER_ERROR_SECONDS
            self._looks_again_at = self._now() + round(wait_seconds * 1000)
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _look(self) -> float:
        """Claim what is due and there is room for; return when to look again, in seconds."""
        if not self._lease.holds():
            return _WITHOUT_LEASE_SECONDS
        # Other processes look too: not all of them again and again at one moment.
        idle = _IDLE_SECONDS * (1 - self._draw() / 4)
        room = min(_CLAIM_AT_MOST, self._room())
        if room <= 0:
            self._waits_for_room = True
            return idle
        claim = ClaimDue(
            self._lease.id, self._now(), room, self._takes, self._busy(), self._probe_ms
        )
        found = await self._database.write(claim)
        self._submit(found.deliveries)
        if found.more:
            return 0.0
        if found.next_at is None:
            return idle
        wait = max(0.0, (found.next_at - self._now()) / 1000)
        if self._database.shared:
            # What is due already another process is taking at this moment.
            wait += _SPREAD_SECONDS * (1 + self._draw()) / 2
        return min(idle, wait)
