"""The engine as one process runs it, on a real database, with its memory in plain sight."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa

from callbacks.database import (
    DatabaseClosed,
    Row,
    SqliteDatabase,
    Statement,
    Transaction,
    Write,
)
from callbacks.leases import Lease
from callbacks.outbox import Delivery
from callbacks.signing_keys import CALLS, SigningKeys
from handlers.awaiting import rests
from handlers.engine import Engine, EngineSettings
from handlers.live_operation import LiveOperation
from handlers.outgoing_calls import OutgoingCalls
from handlers.presence import Presence
from handlers.records import State
from handlers.services import ServiceRegistry
from handlers.store.fence import fence
from handlers.store.journals import AppendJournal
from handlers.store.operations import is_open, operation
from handlers.store.running import hand_back
from handlers.testing.calls import FakeEndpoints
from handlers.testing.clock import FakeClock
from handlers.testing.faults import Faults

_bind = sa.bindparam

_LOST = "a process that was lost"
_STOP_SECONDS = 1.0
# Above zero: what may never come is looked for again after so long.
_AT_ONCE_SECONDS = 0.001

_DISOWN = Statement(sa.update(operation).where(fence).values(owner=_LOST))
_NEXT_RUN = Statement(
    sa.select(sa.func.min(operation.c.run_at)).where(operation.c.state == State.READY.value)
)
_is_owned = sa.and_(operation.c.state == State.RUNNING.value, operation.c.owner.is_not(None))
_NEXT_DEADLINE = Statement(
    sa.select(sa.func.min(operation.c.deadline_at)).where(is_open, sa.not_(_is_owned))
)
_OWNED = Statement(sa.select(sa.func.count()).where(_is_owned))


@dataclass(frozen=True, slots=True)
class _Disown:
    """Have an operation's owner be a process that is gone."""

    token: str
    epoch: int

    @property
    def subject(self) -> str | None:
        return self.token

    async def apply(self, tx: Transaction) -> None:
        await tx.execute(_DISOWN, {"token": self.token, "epoch": self.epoch})
        # Anything may have been missed: whoever looks for lost processes does so now.
        await tx.notify("", "")


class Undelivered:
    """Takes completions and sends none: the test asks for results itself."""

    owner = ""

    def accepts(self, destination: str) -> bool:
        """Nothing is sent by this process."""
        return False

    def max_age_ms(self, destination: str) -> int:
        """Tried for three days, by whoever would."""
        return 72 * 3_600_000

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Send nothing."""


class _WatchedDatabase(SqliteDatabase):
    """The real database; tells what goes on in it, and loses its process where it is to."""

    def __init__(self, path: Path, process: "Process") -> None:
        super().__init__(path)
        self._process = process
        self.in_flight = 0

    def write(self, write: Write[Any]) -> "asyncio.Future[Any]":
        """Write, or be lost."""
        self._process.clock.pulse.beat()
        if not isinstance(write, AppendJournal):
            return self._watched(super().write(write))
        process, faults = self._process, self._process.faults
        nobody: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if faults.crashes_before(write.token, write.entry.key):
            # Not from within the handler's own task, which could not be stopped here.
            nobody.get_loop().call_soon(process.lose, write.token, write.epoch)
            return nobody
        written = self._watched(super().write(write))
        written.add_done_callback(partial(process.recorded, write))
        if faults.crashes_after(write.token, write.entry.key):
            written.add_done_callback(lambda _: process.lose(write.token, write.epoch))
            return nobody
        return written

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query."""
        self._process.clock.pulse.beat()
        return await super().fetch(statement, params)

    async def look(self, statement: Statement) -> Any:
        """Return the one value of a query that counts as nothing going on."""
        [(value,)] = await super().fetch(statement, {})
        return value

    def _watched(self, written: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
        self.in_flight += 1
        written.add_done_callback(self._done)
        return written

    def _done(self, _: "asyncio.Future[Any]") -> None:
        self.in_flight -= 1
        self._process.clock.pulse.beat()


class Process:
    """One life of a gateway: an engine, its lease and its database.

    Args:
        path: The database file, with its tables.
        services: What is served.
        settings: The engine's bounds.
        clock: The time.
        faults: What is to go wrong.
        calls: What answers calls to other endpoints.
    """

    def __init__(
        self,
        path: Path,
        services: ServiceRegistry,
        settings: EngineSettings,
        clock: FakeClock,
        faults: Faults,
        calls: FakeEndpoints,
    ) -> None:
        self.clock = clock
        self.faults = faults
        if faults.always_replay:
            settings = replace(settings, suspend_after_seconds=_AT_ONCE_SECONDS)
        self.database = _WatchedDatabase(path, self)
        self._lease = Lease(self.database)
        self.engine = Engine(
            services,
            self.database,
            Undelivered(),
            lease=self._lease,
            settings=settings,
            clock=clock,
            outgoing=OutgoingCalls(
                calls.endpoints, SigningKeys(self.database, CALLS), transport=calls
            ),
        )
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Begin, and take up what an earlier life left behind."""
        await self._lease.open()
        await self.engine.open()

    async def close(self, drain_seconds: float) -> None:
        """End as SIGTERM does: running steps may end, the rest is handed back."""
        await self.engine.close(drain_seconds)
        await self._settle_tasks()
        await self._lease.close()
        self.database.close()

    async def kill(self) -> None:
        """End as SIGKILL does: nothing is handed back, and nothing more is written."""
        left = [operation.task for operation in self.live() if operation.task is not None]
        self._runner.abandon_all()
        self.engine._claimer.abort()  # noqa: SLF001  # ended as no gateway ends itself
        self.database.close()
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)
        await self._settle_tasks()
        await self.engine.close(0.0)

    async def _settle_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ what goes on

    @property
    def _runner(self) -> Any:
        return self.engine._runner  # noqa: SLF001  # whose memory is looked into

    def live(self) -> list[LiveOperation]:
        """Return the operations in memory."""
        operations: dict[str, LiveOperation] = self._runner._live  # noqa: SLF001  # as above
        return list(operations.values())

    def is_busy(self) -> bool:
        """Whether something runs that ends by itself, in real time."""
        return (
            self.database.in_flight > 0
            or bool(self._tasks)
            or any(not _waits(operation) for operation in self.live())
        )

    def is_uneasy(self) -> bool:
        """Whether an operation that waits also awaits something real, such as a lock."""
        return not all(map(_waits_only, self.live()))

    async def is_due(self) -> bool:
        """Whether something should be happening by now."""
        now = self.clock.now_ms()
        return any(at is not None and at <= now for at in await self._moments())

    async def is_lost(self) -> bool:
        """Whether an operation has lost its process, and is to be taken up by another."""
        return bool(await self.database.look(_OWNED) > self.engine.live)

    async def next_moment(self) -> int | None:
        """Return when something happens next by itself, in milliseconds since 1970."""
        moments = await self._moments()
        if await self.database.look(_OWNED):
            # Short waits are in memory alone. Where nobody waits so, the engine's own housekeeping
            # need not be gone through minute by minute.
            moments.append(self.clock.next_timer())
        return min((at for at in moments if at is not None), default=None)

    async def _moments(self) -> list[int | None]:
        return [await self.database.look(_NEXT_RUN), await self.database.look(_NEXT_DEADLINE)]

    def describe(self) -> str:
        """Return what is in memory and not at rest, for people."""
        busy = [
            f"{live.hosted.service}/{live.hosted.operation}"
            for live in self.live()
            if not _waits(live)
        ]
        if busy:
            return f"{', '.join(busy)} is in a step, or awaits something that is no call of ctx"
        return "the engine"

    # ------------------------------------------------------------ losing memory

    def lose(self, token: str, epoch: int) -> None:
        """Have an operation lose its process: nothing is handed back, another claim follows."""
        self._runner.abandon(token)
        self._begin(self._disown(token, epoch))

    async def _disown(self, token: str, epoch: int) -> None:
        await self.database.write(_Disown(token, epoch))

    def recorded(self, write: AppendJournal, written: "asyncio.Future[bool]") -> None:
        """Take note of what was recorded, and have its operation run again where it always is."""
        if written.cancelled() or written.exception() is not None or not written.result():
            return
        self.faults.recorded[write.token].append(write.entry)
        if self.faults.always_replay:
            for live in self.live():
                if live.token == write.token and live.epoch == write.epoch:
                    self._leave(live)

    def _leave(self, live: LiveOperation) -> None:
        if live.execution is not None and not live.execution.closed and live.task is not None:
            live.execution.leave_after_step()
            self._begin(self._hand_back(live, live.task))

    async def _hand_back(self, live: LiveOperation, task: "asyncio.Task[None]") -> None:
        await asyncio.wait([task])
        if not (live.ended or live.gone):
            now = self.clock.now_ms()
            await self.database.write(hand_back(live.token, live.epoch, now))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._until_closed(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _until_closed(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DatabaseClosed:
            pass

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self.clock.pulse.beat()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A presence all of whose waits count: the clock, or the test, ends the short ones as well."""

    durable: "set[asyncio.Task[Any]]"
    gathering: "Mapping[asyncio.Task[Any], Sequence[asyncio.Task[Any]]]"


def _waits(live: LiveOperation) -> bool:
    """Whether some part of an operation waits for the time, or for something from outside."""
    if live.backoff is not None:
        return True
    execution = live.execution
    return execution is not None and not execution.in_step and bool(execution.presence.waiters)


def _waits_only(live: LiveOperation) -> bool:
    """Whether all of an operation that waits does so, and nothing real goes on beside."""
    execution = live.execution
    if execution is None or live.backoff is not None:
        return True
    presence = execution.presence
    waiters = presence.waiters | presence.durable.keys()
    waiting = cast("Presence", _Waiting(waiters, presence.gathering))
    return all(rests(task, waiting) for task in (presence.task, *waiters))
