"""Claimed operations on their way into memory: each once, however its claim came about."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from callbacks.database import Database, persist
from handlers.pace import Pace
from handlers.services import HostedOperation, ServiceRegistry
from handlers.stats import EngineStats
from handlers.store.claims import ClaimDue, ClaimLapsed, ClaimOwn, ClaimPaused, Lapsed
from handlers.store.operations import StoredOperation

logger = logging.getLogger(__name__)


class Lease(Protocol):
    """Whether this process may own operations."""

    id: str
    seconds: float

    @property
    def term(self) -> int:
        """Names the time during which the lease has not been lost."""

    def holds(self) -> bool:
        """Whether something may be begun that this process owns."""

    def kept_since(self, term: int) -> bool:
        """Whether what was claimed under a term is safe from others still."""


class Runner(Protocol):
    """What runs operations once they are taken."""

    def is_live(self, token: str) -> bool:
        """Whether an operation is in memory."""

    async def take_up(self, stored: StoredOperation, hosted: HostedOperation) -> None:
        """Run an operation whose claim is committed."""


class TakingUp:
    """Commits claims and hands what they took to the runner.

    Args:
        database: Where operations are.
        services: What is served.
        runner: Runs what is taken.
        lease: Whether what was claimed is this process's still.
        stats: Counters.
        pace: How fast.
        is_starting: Whether a start of this process is being recorded: not to be taken twice.
        failed: Told when something was claimed and could not be taken up.
    """

    def __init__(
        self,
        database: Database,
        services: ServiceRegistry,
        runner: Runner,
        lease: Lease,
        stats: EngineStats,
        pace: Pace,
        *,
        is_starting: Callable[[str], bool],
        failed: Callable[[], None],
    ) -> None:
        self._database = database
        self._services = services
        self._runner = runner
        self._lease = lease
        self._stats = stats
        self._pace = pace
        self._is_starting = is_starting
        self._failed = failed
        self._taking: set[str] = set()  # claimed, and not yet in the runner's memory

    def is_in_memory(self, token: str) -> bool:
        """Whether this process knows of an operation that it owns."""
        return self._runner.is_live(token) or token in self._taking or self._is_starting(token)

    async def take(self, why: str, claim: ClaimDue | ClaimOwn) -> int:
        """Commit a claim and run what it took; return how many operations that is."""
        term = self._lease.term
        with self._pace.timed():
            claimed = await self._database.write(claim)
        await self._take_up(why, claimed, term)
        return len(claimed)

    async def take_lapsed(self, claim: ClaimLapsed) -> Lapsed:
        """Commit a claim on what a lost process left, and run what it took."""
        term = self._lease.term
        with self._pace.timed():
            lapsed = await self._database.write(claim)
        await self._take_up("lapsed", lapsed.operations, term)
        return lapsed

    async def resume(self, stored: StoredOperation, hosted: HostedOperation) -> bool:
        """Take up a paused operation; return False where it is paused no longer."""
        if stored.token in self._taking or self._runner.is_live(stored.token):
            return False
        self._taking.add(stored.token)
        term = self._lease.term
        try:
            claimed = await persist(
                self._database, ClaimPaused(self._lease.id, stored.token, stored.epoch)
            )
            if claimed is None:
                return False
            if self._lease.kept_since(term):
                await self._runner.take_up(claimed, hosted)
        finally:
            self._taking.discard(stored.token)
        return True

    async def _take_up(self, why: str, claimed: Sequence[StoredOperation], term: int) -> None:
        if not claimed:
            return
        self._stats.claimed[why] += len(claimed)
        tokens = [stored.token for stored in claimed]
        self._taking.update(tokens)
        try:
            taking = [self._take_up_one(stored, term) for stored in claimed]
            for stored, answer in zip(
                claimed, await asyncio.gather(*taking, return_exceptions=True), strict=True
            ):
                if isinstance(answer, Exception):
                    # Ours, and not in memory: found so, and tried again.
                    self._failed()
                    logger.error(
                        "cannot take up an operation",
                        exc_info=answer,
                        extra={"token": stored.token},
                    )
        finally:
            self._taking.difference_update(tokens)
        await self._pace.after(tokens)

    async def _take_up_one(self, stored: StoredOperation, term: int) -> None:
        if not self._lease.kept_since(term):
            # Another process may have it by now; if not, it is found as ours again.
            self._failed()
            return
        hosted = self._services.find(stored.endpoint, stored.service, stored.operation)
        await self._runner.take_up(stored, hosted)
