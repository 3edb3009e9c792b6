"""Deletes what is past its retention, a little at a time."""

from callbacks.database import Database
from handlers.clock import Clock
from handlers.pace import Pace
from handlers.stats import EngineStats
from handlers.store.retention import NEXT_EXPIRY, DeleteExpired

_LONGEST_MS = 60_000
_SHORTEST_MS = 1_000  # between two looks that find little
_UNDELIVERED_AGAIN_MS = 3_600_000


class Expiry:
    """Knows when the next closed operation is past its retention, and deletes it.

    Args:
        database: Where operations are.
        pace: Slower where the database is.
        stats: Counters.
        clock: The time.
        at_a_time: How many operations one transaction deletes.
    """

    def __init__(
        self, database: Database, pace: Pace, stats: EngineStats, clock: Clock, *, at_a_time: int
    ) -> None:
        self._database = database
        self._pace = pace
        self._stats = stats
        self._clock = clock
        self._at_a_time = at_a_time
        self.next_at = 0

    async def look(self) -> bool:
        """Delete what is past its retention; return whether there may be more of it at once."""
        now = self._clock.now_ms()
        self.next_at = now + _LONGEST_MS
        with self._pace.timed():
            expired = await self._database.write(
                DeleteExpired(now, self._at_a_time, _UNDELIVERED_AGAIN_MS)
            )
        self._stats.expired += expired.deleted
        if expired.deleted + expired.kept == self._at_a_time:
            self.next_at = now
            await self._pace.after(())
            return True
        for (expires_at,) in await self._database.fetch(NEXT_EXPIRY, {}):
            self.next_at = min(max(expires_at, now + _SHORTEST_MS), now + _LONGEST_MS)
        return False
