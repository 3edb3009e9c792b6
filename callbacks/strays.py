"""Deliveries in flight that nobody holds: of processes that died, and of lost replies.

A commit may land although its reply is lost. What it claimed is then in flight in the database and
in nobody's memory; what it closed is closed, and found so when the write is tried again.
"""

import logging
from collections.abc import Callable

from callbacks.database import Database, persist
from callbacks.in_flight import IN_FLIGHT_OF, InFlight, RecoverInFlight, Release
from callbacks.leases import Lease
from callbacks.rounds import make_rounds

logger = logging.getLogger(__name__)


class Strays:
    """Makes them due again; an attempt may have been made, so its outcome is unknown.

    Args:
        database: Where the outbox is.
        lease: Of this process.
        is_held: Whether a delivery is in this process's memory.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        is_held: Callable[[int], bool],
        now: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._lease = lease
        self._is_held = is_held
        self._now = now
        self._draw = draw
        self._suspects: set[InFlight] = set()

    async def run(self) -> None:
        """Look twice a lease, until the database closes."""
        await make_rounds(
            self._look,
            lease=self._lease,
            wait_seconds=lambda: self._lease.seconds * (0.25 + self._draw() / 2),
            what="deliveries that nobody holds",
        )

    async def _look(self) -> None:
        await self.release_own()
        if self._database.shared:
            await self.recover()

    async def recover(self) -> None:
        """Make due what processes had in flight that are gone."""
        recovered = await persist(self._database, RecoverInFlight(self._now()))
        if recovered:
            logger.info("repeats deliveries of unknown outcome", extra={"count": recovered})

    async def release_own(self) -> None:
        """Make due what this process has in flight and not in memory, the second time it is seen.

        The first time its claim may have been committed just now.
        """
        owner = self._lease.id
        rows = await self._database.fetch(IN_FLIGHT_OF, {"owner_is": owner})
        not_held = {
            InFlight(id, owner, attempt, claimed_at)
            for id, attempt, claimed_at in rows
            if not self._is_held(id)
        }
        strays, self._suspects = not_held & self._suspects, not_held
        for stray in strays:
            if await self._database.write(Release(stray, self._now())):
                logger.warning(
                    "found a delivery in flight that nobody held", extra={"callback": stray.id}
                )
