"""How fast operations are taken up: as fast as new requests are still answered meanwhile."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_NAP_SECONDS = 0.005
_LATE_SECONDS = 0.02  # a loop that comes back later from a nap is busy
_SLOW_SECONDS = 0.1  # a database that takes longer for a claim is busy
_LONGEST_WAIT_SECONDS = 1.0  # what is still in memory by then may be waiting for hours


class Pace:
    """Holds back who takes operations up in batches.

    A backlog of a hundred thousand operations, all in memory at once and all with something to do,
    would leave every new request waiting for its turn. So many are let in as keep the loop or the
    database busy; those that only wait count for nothing.

    Args:
        is_live: Whether an operation is still in memory.
        at_most: How many may be at work while the loop or the database is busy.
    """

    def __init__(self, is_live: Callable[[str], bool], *, at_most: int) -> None:
        self._is_live = is_live
        self._at_most = at_most
        self._at_work: set[str] = set()
        self._claim_seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure how long the database takes for a write."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._claim_seconds = time.monotonic() - began

    async def after(self, tokens: Sequence[str]) -> None:
        """Wait, after a batch has been taken up, until there is room for another one."""
        self._at_work.update(tokens)
        waited = 0.0
        while True:
            began = time.monotonic()
            await asyncio.sleep(_NAP_SECONDS)
            slept = time.monotonic() - began
            waited += slept
            self._at_work = {token for token in self._at_work if self._is_live(token)}
            is_idle = slept < _LATE_SECONDS and self._claim_seconds < _SLOW_SECONDS
            if is_idle or waited > _LONGEST_WAIT_SECONDS:
                self._at_work.clear()
                return
            if len(self._at_work) < self._at_most:
                return
