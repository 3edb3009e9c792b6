"""Gives up what became too old while its destination did not answer, and tidies up behind it."""

import logging
from collections.abc import Callable

from callbacks.attempts import DeliveryStats
from callbacks.database import Database
from callbacks.dead_letters import Expire, Notice
from callbacks.destinations import ForgetIdle, Repair
from callbacks.leases import Lease
from callbacks.rounds import make_rounds

logger = logging.getLogger(__name__)

_AT_ONCE = 64
_LOOK_SECONDS = 30.0
_REMEMBERED_MS = 24 * 3_600_000


class Aging:
    """Looks now and then.

    Args:
        database: Where the outbox is.
        lease: Of this process.
        notice: How the operator is told.
        stats: Counts what is given up.
        tidy: Forgets what need not be known in memory.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        *,
        notice: Notice | None,
        stats: DeliveryStats,
        tidy: Callable[[], None],
        now: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._lease = lease
        self._notice = notice
        self._stats = stats
        self._tidy = tidy
        self._now = now
        self._draw = draw

    async def run(self) -> None:
        """Look until the database closes."""
        await make_rounds(
            self.look,
            lease=self._lease,
            wait_seconds=lambda: _LOOK_SECONDS * (0.5 + self._draw()),
            what="deliveries that became too old",
        )

    async def look(self) -> None:
        """Give up what is too old, and forget destinations that made no trouble for a day."""
        while True:
            letters = await self._database.write(Expire(self._now(), _AT_ONCE, self._notice))
            self._stats.failed += len(letters)
            for letter in letters:
                logger.error(
                    "completion given up",
                    extra={
                        "token": letter.token,
                        "destination": letter.destination,
                        "attempt": letter.attempts,
                        "reason": letter.reason,
                    },
                )
            if len(letters) < _AT_ONCE:
                break
        await self._database.write(ForgetIdle(self._now() - _REMEMBERED_MS))
        self._tidy()
        if forgotten := await self._database.write(Repair(self._now())):
            logger.error(
                "found deliveries that nobody looked for", extra={"destinations": forgotten}
            )
