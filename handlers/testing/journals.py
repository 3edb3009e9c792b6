"""Whether the journals that are stored still replay on today's code."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa

from callbacks.database import Row, Statement, Write
from callbacks.database.database import Subscriber
from handlers.clock import Clock
from handlers.durable_runner import DurableRunner
from handlers.endings import Endings
from handlers.live_operation import LiveOperation
from handlers.services import DEFAULT_ENDPOINT, HostedOperation, Kind, ServiceRegistry
from handlers.stats import EngineStats
from handlers.store.ending import Finish
from handlers.store.journals import AppendJournal
from handlers.store.operations import COLUMNS, StoredOperation, is_open, operation, read_operation
from handlers.store.running import Suspend, Update
from handlers.testing.errors import JournalsDiverge
from handlers.testing.process import Undelivered
from handlers.testing.stored import Reader, reading
from handlers.tracing import Tracing
from nexus_spec import PayloadSerializer

_AT_A_TIME = 500
_STOP_SECONDS = 1.0
_CLEANUP_SECONDS = 60.0
_QUIET_TURNS = 24

_page = (
    sa.select(*COLUMNS)
    .where(operation.c.token > sa.bindparam("after"))
    .order_by(operation.c.token)
    .limit(_AT_A_TIME)
)
_SOME = Statement(_page)
_SOME_OPEN = Statement(_page.where(is_open))


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalCheck:
    """Whether one stored operation replays.

    Attributes:
        token: The operation.
        service: Its service.
        operation: Its name.
        state: Its state as stored.
        replays: Whether today's code asks for what is recorded, as far as that goes.
        message: Why not; empty where it does.
    """

    token: str
    service: str
    operation: str
    state: str
    replays: bool
    message: str = ""


async def check_journals(
    services: Sequence[Any] | Mapping[str, Sequence[Any]],
    database: str | Path,
    *,
    ended: bool = False,
    patience: float = 5.0,
) -> list[JournalCheck]:
    """Replay the operations of a database on today's code, and say which of them would pause.

    Nothing is written and no step is run: each handler gets what is recorded, and is stopped as
    soon as it asks for more. So run it in CI, on a copy of the production database, before a
    deploy. The code of the handlers between the steps does run.

    Args:
        services: Service handler instances; by endpoint, where there is more than one.
        database: A URL as `--database` takes it, or the path of a SQLite file.
        ended: Also operations that have ended; more to compare with, though none of them can
            pause any more.
        patience: How many seconds a handler may await something that is no call of its context.

    Returns:
        One check for each durable operation, in the order in which they were started.

    Raises:
        DatabaseError: The database cannot be read.
    """
    endpoints = services if isinstance(services, Mapping) else {DEFAULT_ENDPOINT: services}
    registry = ServiceRegistry(endpoints)
    checks: list[JournalCheck] = []
    async with reading(database) as reader:
        after = ""
        while rows := await reader.fetch(_SOME if ended else _SOME_OPEN, {"after": after}):
            for stored in map(read_operation, rows):
                after = stored.token
                hosted = registry.get(stored.endpoint, stored.service, stored.operation)
                if hosted is not None and hosted.kind is not Kind.DURABLE:
                    continue
                if hosted is None and stored.handler_token is not None:
                    continue
                problem = "no handler serves it any more"
                if hosted is not None:
                    problem = await _replay(reader, stored, hosted, patience)
                checks.append(_check(stored, problem))
    return checks


async def assert_journals_replay(
    services: Sequence[Any] | Mapping[str, Sequence[Any]],
    database: str | Path,
    *,
    ended: bool = False,
    patience: float = 5.0,
) -> None:
    """Check journals as `check_journals` does.

    Raises:
        JournalsDiverge: Operations do not replay; an `AssertionError` that names each.
        DatabaseError: The database cannot be read.
    """
    checks = await check_journals(services, database, ended=ended, patience=patience)
    diverging = [check for check in checks if not check.replays]
    if diverging:
        lines = [f"{c.service}/{c.operation} {c.token}: {c.message}" for c in diverging]
        raise JournalsDiverge(
            f"{len(diverging)} of {len(checks)} operations do not replay on this code:\n"
            + "\n".join(lines)
        )


def _check(stored: StoredOperation, problem: str) -> JournalCheck:
    return JournalCheck(
        token=stored.token,
        service=stored.service,
        operation=stored.operation,
        state=stored.state.value,
        replays=not problem,
        message=problem,
    )


async def _replay(
    reader: Reader, stored: StoredOperation, hosted: HostedOperation, patience: float
) -> str:
    """Return why an operation does not replay; an empty text where it does."""
    probe = _Probe(reader)
    serializer = PayloadSerializer()
    stats = EngineStats()
    clock = Clock()
    endings = Endings(probe, Undelivered(), stats, clock=clock, retention_ms=0)
    with ThreadPoolExecutor(1) as threads:
        runner = DurableRunner(
            probe,
            endings,
            serializer,
            threads,
            Tracing(),
            stats,
            cleanup_seconds=_CLEANUP_SECONDS,
            suspend_after_seconds=0.0,
            clock=clock,
            lease=probe,
            on_ready=_ignore,
            on_paused=_ignore,
        )
        await runner.take_up(stored, hosted)
        live: LiveOperation = runner._live[stored.token]  # noqa: SLF001  # what is being probed
        # Only the journal may say that it was to end: a cancel or a deadline since then would
        # interrupt the handler before it has asked for what is recorded.
        live.cancel_requested = live.deadline_passed = False
        task = live.task
        assert task is not None
        try:
            await asyncio.wait(
                [probe.stopped, task], timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            for _ in range(_QUIET_TURNS):  # other branches may still be asking for their records
                await asyncio.sleep(0)
            if (execution := live.execution) is not None and execution.diverged is not None:
                return str(execution.diverged)
            if not probe.stopped.done():
                return f"it awaited something for {patience:g} s that is no call of its context"
            return probe.problem(stored)
        finally:
            runner.abandon(stored.token)
            probe.stopped.cancel()
            task.cancel()
            await asyncio.wait([task], timeout=_STOP_SECONDS)


def _ignore(at: int) -> None:
    """Nobody takes up what is only looked at."""


class _Probe:
    """Takes a handler's writes and its right to run steps, and does nothing with them.

    The first that shows that the handler is done with its journal stops it: as `database`,
    something new to record, a long wait or an end; as `lease`, a step to be run.
    """

    dialect: Final[Literal["sqlite"]] = "sqlite"
    shared: Final = False
    batches: Final = 0
    writes: Final = 0

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last: Write[Any] | None = None

    @cached_property
    def stopped(self) -> "asyncio.Future[None]":
        return asyncio.get_running_loop().create_future()

    def problem(self, stored: StoredOperation) -> str:
        """Return what is wrong with how the handler was stopped."""
        if not isinstance(self._last, Update):
            return ""
        if (reason := self._last.values.get("new_reason")) is not None:
            return str(reason)
        if stored.attempts or stored.state.ended:
            return ""  # it has failed so before
        return f"the handler fails on what is recorded: {self._last.values['new_detail']}"

    # ------------------------------------------------------------ as the database

    def write(self, write: Write[Any]) -> "asyncio.Future[Any]":
        is_last = isinstance(write, AppendJournal | Finish | Suspend) or (
            isinstance(write, Update) and not {"new_reason", "new_detail"}.isdisjoint(write.values)
        )
        if is_last:
            self._stop(write)
        return asyncio.get_running_loop().create_future()

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        return await self._reader.fetch(statement, params)

    def subscribe(self, callback: Subscriber) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # ------------------------------------------------------------ as the lease

    def holds(self) -> bool:
        return False

    async def held(self) -> None:
        self._stop(None)
        await asyncio.get_running_loop().create_future()

    def _stop(self, write: Write[Any] | None) -> None:
        if not self.stopped.done():
            self._last = write
            self.stopped.set_result(None)
