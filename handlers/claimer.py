"""Takes up operations that nobody runs: due ones, and those whose process is gone."""

import asyncio
import logging
from collections.abc import Callable

from callbacks.database import Database, DatabaseClosed
from handlers.clock import Clock
from handlers.deadlines import Deadlines
from handlers.engine_settings import EngineSettings
from handlers.expiry import Expiry
from handlers.pace import Pace
from handlers.probation import Probation
from handlers.services import HostedOperation, Kind, ServiceRegistry
from handlers.stats import EngineStats
from handlers.store.claims import (
    GONE_OWNERS,
    NEXT_DUE,
    OWNED,
    UNSERVED,
    ClaimDue,
    ClaimLapsed,
    ClaimOwn,
    Lapsed,
)
from handlers.store.operations import StoredOperation, hosted_name
from handlers.taking_up import Lease, Runner, TakingUp
from nexus_spec.json_text import json_text

logger = logging.getLogger(__name__)

_IDLE_MS = 60_000
_HORIZON_MS = 60_000  # no index tells who serves what: no query looks farther ahead than this
_ORPHAN_MS = 3_000  # between the two looks that find what is ours and not in memory
_BROKEN_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  # a database that cannot be reached does not answer for a claim either
_NEVER_MS = 2**62


def durable_here(services: ServiceRegistry) -> str:
    """Return the durable operations that are served, as the statements take them."""
    names = [
        hosted_name(hosted.endpoint, hosted.service, hosted.operation)
        for hosted in services
        if hosted.kind is Kind.DURABLE
    ]
    return json_text(names)


class Claimer:
    """One task that finds what is to be done in the database, and has it done here.

    It takes due operations, those of processes that are gone, and those that are this process's
    own though it does not know of them (the reply to a write was lost); it ends what is past its
    deadline with nobody to run it, and deletes what is past its retention. It sleeps until the
    next of these, or until it is told.

    Args:
        database: Where operations are.
        services: What is served; the rest is left to others.
        runner: Runs what is taken.
        lease: Whether this process may take anything.
        deadlines: Ends what is past its deadline.
        stats: Counters.
        clock: The time.
        settings: Bounds.
        is_starting: Whether a start of this process is being recorded: not to be taken twice.
    """

    def __init__(
        self,
        database: Database,
        services: ServiceRegistry,
        runner: Runner,
        lease: Lease,
        deadlines: Deadlines,
        stats: EngineStats,
        clock: Clock,
        settings: EngineSettings,
        *,
        is_starting: Callable[[str], bool],
    ) -> None:
        self._database = database
        self._hosted = durable_here(services)
        self._lease = lease
        self._deadlines = deadlines
        self._stats = stats
        self._clock = clock
        self._settings = settings
        pace = Pace(runner.is_live, at_most=2 * settings.claim_batch)
        self._taking_up = TakingUp(
            database,
            services,
            runner,
            lease,
            stats,
            pace,
            is_starting=is_starting,
            failed=self._look_for_lost_soon,
        )
        self._expiry = Expiry(database, pace, stats, clock, at_a_time=settings.claim_batch)
        self._probation = Probation(database, runner.is_live, clock, settings, lease.id)
        self._gone: list[str] = []  # owners whose operations are being taken
        self._orphans: dict[str, int] = {}  # since when they are known, in milliseconds since 1970
        self._unserved_is_asked = False
        self._unserved: set[tuple[str, str]] = set()
        self._due_at = 0
        self._lost_at = 0
        self._sooner = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        deadlines.on_sooner(self._sooner.set)

    # ------------------------------------------------------------ life

    def open(self) -> None:
        """Begin, with what an earlier process left."""
        self._task = asyncio.get_running_loop().create_task(self._keep_looking(), name="claimer")

    async def close(self) -> None:
        """Take nothing any more."""
        self._closing = True
        self._sooner.set()
        if self._task is not None:
            # Not cancelled: what it is claiming right now would be handed back by nobody.
            await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)
            self._task.cancel()

    def abort(self) -> None:
        """Stop in the middle of whatever it does, as the end of the process would."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    # ------------------------------------------------------------ being told

    def due_at(self, run_at: int) -> None:
        """Look for due operations at this time, in milliseconds since 1970."""
        if run_at < self._due_at:
            self._due_at = run_at
            self._sooner.set()

    def due_now(self) -> None:
        """Look for due operations: one became due."""
        self.due_at(0)

    def missed(self) -> None:
        """Look for everything: word of something may have been missed."""
        self._lost_at = 0
        self.due_now()

    def _look_for_lost_soon(self) -> None:
        self._lost_at = 0

    async def resume(self, stored: StoredOperation, hosted: HostedOperation) -> bool:
        """Take up a paused operation; return False where it is paused no longer."""
        return await self._taking_up.resume(stored, hosted)

    # ------------------------------------------------------------ looking

    async def _keep_looking(self) -> None:
        while not self._closing:
            self._sooner.clear()
            try:
                if not self._lease.holds():
                    await self._sleep(self._clock.now_ms() + self._look_ms)
                elif not await self._round():
                    await self._sleep(self._next_at())
            except DatabaseClosed:
                return
            except Exception:
                logger.exception("cannot look for operations")
                self.missed()
                await asyncio.sleep(_BROKEN_SECONDS)

    async def _round(self) -> bool:
        """Do a piece of each kind of work; return whether there may be more at once."""
        more = await self._take_due() if self._due_at <= self._clock.now_ms() else False
        if self._lost_at <= self._clock.now_ms():
            await self._look_for_lost()
        if self._gone:
            await self._take_lapsed(self._gone[0])
            more = True
        if await self._probation.is_over() and self._probation.waiting:
            await self._take_suspect(self._probation.waiting[0])
            more = True
        if self._deadlines.next_at <= self._clock.now_ms():
            more = await self._deadlines.look() or more
        if self._expiry.next_at <= self._clock.now_ms():
            more = await self._expiry.look() or more
        if self._unserved_is_asked and not more:
            await self._warn_of_unserved()
        return more and not self._closing

    def _next_at(self) -> int:
        return min(
            self._due_at,
            self._lost_at,
            self._expiry.next_at,
            self._deadlines.next_at,
            self._probation.next_at,
        )

    async def _sleep(self, until_ms: int) -> None:
        left = (until_ms - self._clock.now_ms()) / 1000
        timer = self._clock.call_later(left, self._sooner.set)
        try:
            await self._sooner.wait()
        finally:
            timer.cancel()

    @property
    def _look_ms(self) -> int:
        """How often is looked for processes that are gone."""
        return round(self._lease.seconds * 1000 / 4) if self._database.shared else _IDLE_MS

    # ------------------------------------------------------------ due

    async def _take_due(self) -> bool:
        now = self._clock.now_ms()
        self._due_at = _NEVER_MS
        most = self._settings.claim_batch
        claim = ClaimDue(self._lease.id, self._hosted, now, most)
        if await self._taking_up.take("due", claim) == most:
            self._due_at = 0
            return True
        self._due_at = min(self._due_at, now + _HORIZON_MS)
        asked = {"hosted": self._hosted, "until": now + _HORIZON_MS}
        for (run_at,) in await self._database.fetch(NEXT_DUE, asked):
            # What another process is claiming at this moment is still there, and due.
            self._due_at = min(self._due_at, max(run_at, now + 1))
        return False

    # ------------------------------------------------------------ lost

    async def _look_for_lost(self) -> None:
        now = self._clock.now_ms()
        self._lost_at = now + self._look_ms
        if self._database.shared:
            self.due_at(now)  # others may have suspended something and died
        rows = await self._database.fetch(GONE_OWNERS, {})
        self._gone = [str(owner) for (owner,) in rows]
        self._unserved_is_asked = True
        await self._take_orphans(now)

    async def _take_orphans(self, now: int) -> None:
        """Take what is ours in the database, and not in memory at two looks in a row."""
        rows = await self._database.fetch(OWNED, {"me": self._lease.id})
        unknown = [token for (token,) in rows if not self._taking_up.is_in_memory(token)]
        self._orphans = {token: self._orphans.get(token, now) for token in unknown}
        since = now - min(_ORPHAN_MS, self._look_ms)
        found = [token for token, first in self._orphans.items() if first <= since]
        if found:
            logger.warning("takes up operations of its own again", extra={"count": len(found)})
            batch = found[: self._settings.claim_batch]
            for token in batch:
                del self._orphans[token]
            await self._taking_up.take("own", ClaimOwn(self._lease.id, batch))
        if self._orphans:
            self._lost_at = min(self._lost_at, now + _ORPHAN_MS)

    async def _take_lapsed(self, owner: str) -> None:
        most = self._settings.claim_batch
        lapsed = await self._claim_lapsed(owner, most=most, suspects=False)
        if lapsed.looked_at < most and self._gone[:1] == [owner]:
            del self._gone[0]
            self._probation.expect(owner)

    async def _take_suspect(self, owner: str) -> None:
        passed = self._probation.passed()
        lapsed = await self._claim_lapsed(owner, most=1, suspects=True, absolved=passed)
        if not lapsed.looked_at:
            self._probation.waiting.remove(owner)
        for stored in lapsed.operations:
            logger.warning(
                "takes up an operation alone: it lost several processes",
                extra={"token": stored.token, "losses": stored.losses},
            )
            self._probation.begin(stored.token)

    async def _claim_lapsed(
        self, owner: str, *, most: int, suspects: bool, absolved: str | None = None
    ) -> Lapsed:
        claim = ClaimLapsed(
            me=self._lease.id,
            owner=owner,
            hosted=self._hosted,
            most=most,
            suspects=suspects,
            poison_after=self._settings.poison_after,
            absolved=absolved,
        )
        lapsed = await self._taking_up.take_lapsed(claim)
        for stored in lapsed.poisoned:
            logger.error(
                "operation paused: it lost its process again and again",
                extra={"token": stored.token, "losses": stored.losses},
            )
            if stored.cancel_requested_at is not None:
                await self._deadlines.end_canceled(stored)
            self._deadlines.watch(stored.deadline_at)
        self._stats.poisoned += len(lapsed.poisoned)
        return lapsed

    async def _warn_of_unserved(self) -> None:
        """Say, once for each, which handlers operations wait for in vain."""
        self._unserved_is_asked = False
        if self._database.shared:
            return  # another process may serve them
        asked = {"hosted": self._hosted, "now": self._clock.now_ms()}
        rows = await self._database.fetch(UNSERVED, asked)
        for service, operation in {(str(s), str(o)) for s, o in rows} - self._unserved:
            self._unserved.add((service, operation))
            logger.warning(
                "an operation waits for a handler that is not served",
                extra={"service": service, "operation": operation},
            )
