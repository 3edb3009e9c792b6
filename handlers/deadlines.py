"""Deadlines of operations that no handler runs: started elsewhere, paused, not served."""

import logging
from collections.abc import Callable

from callbacks.database import Database
from handlers.clock import Clock
from handlers.endings import Endings, canceled, failed
from handlers.store.deadlines import NEXT_DEADLINE, PAST_DEADLINE
from handlers.store.operations import StoredOperation, read_operation

logger = logging.getLogger(__name__)

TIMED_OUT = "operation timed out"

_AT_A_TIME = 100
_HORIZON_MS = 60_000  # no index tells who runs what: no query looks farther ahead than this


class Deadlines:
    """Ends operations as failed when their time is up, without running any of their code.

    The database knows which; in memory there is only when to look again.

    Args:
        database: Where operations are.
        endings: Ends them.
        clock: The time.
        hosted: The durable operations that are served here, as a JSON array of `hosted_as` values:
            they are woken at their deadline, and clean up.
        grace_ms: How long one that is not served here is left to other processes.
    """

    def __init__(
        self, database: Database, endings: Endings, clock: Clock, *, hosted: str, grace_ms: int
    ) -> None:
        self._database = database
        self._endings = endings
        self._clock = clock
        self._hosted = hosted
        self._grace_ms = grace_ms
        self._on_sooner: Callable[[], None] = lambda: None
        self.next_at = 0

    def on_sooner(self, callback: Callable[[], None]) -> None:
        """Have a function called when `next_at` is sooner than it was."""
        self._on_sooner = callback

    def watch(self, deadline_at: int | None) -> None:
        """Look at a deadline (milliseconds since 1970) of an operation that no handler runs."""
        if deadline_at is not None and deadline_at < self.next_at:
            self.next_at = deadline_at
            self._on_sooner()

    async def end_canceled(self, stored: StoredOperation) -> None:
        """End an operation that was asked to end and will not be run for it: it was paused."""
        await self._endings.finish_stored(stored, canceled())

    async def look(self) -> bool:
        """End what is past its deadline; return whether there may be more of it at once."""
        now = self._clock.now_ms()
        self.next_at = now + _HORIZON_MS
        try:
            more = await self._end_those_past(now)
        except BaseException:
            self.next_at = now
            raise
        if more:
            self.next_at = now
            return True
        asked = {"now": now, "until": now + _HORIZON_MS, "hosted": self._hosted}
        for (deadline_at,) in await self._database.fetch(NEXT_DEADLINE, asked):
            self.next_at = min(self.next_at, deadline_at)
        return False

    async def _end_those_past(self, now: int) -> bool:
        past = await self._database.fetch(
            PAST_DEADLINE,
            {
                "now": now,
                "hosted": self._hosted,
                "overdue_before": now - self._grace_ms,
                "most": _AT_A_TIME,
            },
        )
        for stored in map(read_operation, past):
            logger.info("operation timed out", extra={"token": stored.token})
            await self._endings.finish_stored(stored, failed(TIMED_OUT))
        return len(past) == _AT_A_TIME
