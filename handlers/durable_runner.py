"""Keeps durable operations running: from the commit of their start, or a claim, to their end."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast

from callbacks.database import Database, DatabaseClosed
from handlers.calls import CallSettings
from handlers.clock import Clock
from handlers.endings import Endings
from handlers.errors import LeftMemory
from handlers.handler_runs import HandlerRuns, Residence
from handlers.journal import Journal, Reason
from handlers.live_operation import LiveOperation
from handlers.mailbox import Mailbox
from handlers.records import State
from handlers.services import HostedOperation
from handlers.stats import EngineStats
from handlers.steps import Ownership, StepSettings, Unshared
from handlers.store.journals import LOAD_JOURNAL, read_entry
from handlers.store.operations import StoredOperation
from handlers.store.running import LOOK, hand_back
from handlers.store.signals import LOAD_SIGNALS, read_signal
from handlers.tracing import Tracing
from nexus_spec import PayloadSerializer

logger = logging.getLogger(__name__)

_STOP_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class _Meanwhile:
    """What happened to an operation while it was loaded."""

    woken: bool = False
    abandoned: bool = False


class DurableRunner:
    """Holds the durable operations that are in this process's memory, and runs them.

    Args:
        database: Where operations and journals are.
        endings: Ends operations.
        serializer: Reads inputs and writes results.
        threads: For steps that are plain functions.
        tracing: Spans, or nothing.
        stats: Counters.
        cleanup_seconds: How long a handler may clean up after a cancel or its deadline.
        suspend_after_seconds: What waits longer than this leaves memory.
        clock: The time.
        lease: Whether this process may still begin a step; it shares its database with no other
            by default.
        on_ready: Told the `run_at` of each operation that is in nobody's memory any more
            (milliseconds since 1970).
        on_paused: Told the deadline of each operation that was paused (milliseconds since 1970).
        calls: What handlers call other endpoints with; without it they cannot.
    """

    def __init__(
        self,
        database: Database,
        endings: Endings,
        serializer: PayloadSerializer,
        threads: Executor,
        tracing: Tracing,
        stats: EngineStats,
        *,
        cleanup_seconds: float,
        suspend_after_seconds: float = 5.0,
        clock: Clock | None = None,
        lease: Ownership | None = None,
        on_ready: Callable[[int], None],
        on_paused: Callable[[int], None],
        calls: CallSettings | None = None,
    ) -> None:
        self._database = database
        self._tracing = tracing
        self._clock = clock or Clock()
        self._on_ready = on_ready
        self._live: dict[str, LiveOperation] = {}
        self._taking: dict[str, _Meanwhile] = {}  # being loaded
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._runs = HandlerRuns(
            database=database,
            endings=endings,
            serializer=serializer,
            steps=StepSettings(
                threads=threads,
                tracing=tracing,
                lease=lease or Unshared(),
                suspend_after_seconds=suspend_after_seconds,
                on_step=stats.step.observe,
            ),
            clock=self._clock,
            residence=Residence(
                is_draining=lambda: self._draining,
                look=self._look,
                forget=self._forget,
                on_ready=on_ready,
                on_paused=on_paused,
            ),
            cleanup_seconds=cleanup_seconds,
            calls=calls,
        )

    @property
    def live(self) -> int:
        """How many operations are in memory."""
        return len(self._live)

    def is_live(self, token: str) -> bool:
        """Whether an operation is in memory, or on its way there."""
        return token in self._live or token in self._taking

    def live_tokens(self) -> list[str]:
        """Return the operations in memory."""
        return [*self._live, *self._taking]

    def launch(self, operation: LiveOperation) -> None:
        """Run an operation whose start, or claim, is committed."""
        if self._draining:
            self._give_up(operation)
            return
        self._live[operation.token] = operation
        if operation.deadline_at is not None:
            left = (operation.deadline_at - self._clock.now_ms()) / 1000
            if left <= 0:
                operation.deadline_passed = True  # before it takes another step
            else:
                timer = self._clock.call_later(left, self._deadline_passed, operation)
                operation.timers.append(timer)
        operation.task = self._loop.create_task(self._keep_running(operation))
        self._tasks.add(operation.task)

    async def take_up(self, stored: StoredOperation, hosted: HostedOperation) -> None:
        """Run an operation whose claim is committed; `stored` is what the claim returned."""
        token = stored.token
        if (before := self._live.get(token)) is not None:
            self._abandon(before)  # claimed since: what it still does is fenced
        meanwhile = self._taking[token] = _Meanwhile()
        try:
            # Word of what came right after the claim was heard before anybody listened for it.
            looks = await self._database.fetch(LOOK, {"token": token})
            # After the claim: what was still on its way then is fenced, or it is here now.
            entries = await self._database.fetch(LOAD_JOURNAL, {"token": token})
            signals = await self._database.fetch(LOAD_SIGNALS, {"token": token})
        finally:
            if self._taking.get(token) is meanwhile:
                del self._taking[token]
        if meanwhile.abandoned:
            return
        journal = Journal(read_entry(row) for row in entries)
        mailbox = Mailbox(read_signal(row) for row in signals)
        operation = LiveOperation.load(stored, hosted, journal, mailbox, self._database)
        for _, _, wake_seq, cancel_requested_at in looks:
            operation.wake_seq = max(operation.wake_seq, wake_seq)  # the signals were read later
            operation.cancel_requested = cancel_requested_at is not None
        if interrupt := journal.interrupt():
            operation.deadline_passed = interrupt.reason is Reason.DEADLINE
        self.launch(operation)
        if meanwhile.woken:
            self.wake(token)

    # ------------------------------------------------------------ from outside

    def wake(self, token: str) -> None:
        """Find out what happened to an operation from outside; nothing where it is not here."""
        operation = self._live.get(token)
        if operation is not None:
            self._look(operation)
        elif token in self._taking:
            self._taking[token].woken = True

    def wake_all(self) -> None:
        """Find out what happened to every operation here: word of something may have been lost."""
        for token in self.live_tokens():
            self.wake(token)

    def cancel(self, token: str) -> None:
        """Interrupt an operation whose cancel request is committed."""
        operation = self._live.get(token)
        if operation is not None:
            self._cancel(operation)

    def abandon(self, token: str) -> None:
        """Drop an operation out of memory: it is another process's; nothing is written."""
        operation = self._live.get(token)
        if operation is not None:
            self._abandon(operation)
        if token in self._taking:
            self._taking[token].abandoned = True

    def abandon_all(self) -> None:
        """Drop all operations out of memory: the lease has run out; nothing is written."""
        for operation in list(self._live.values()):
            self._abandon(operation)
        for meanwhile in self._taking.values():
            meanwhile.abandoned = True

    async def drain(self, seconds: float) -> None:
        """Let running steps end, then hand back what is left for the next process.

        Args:
            seconds: How long running steps may take.
        """
        self._draining = True
        operations = list(self._live.values())
        busy = [
            operation
            for operation in operations
            if operation.execution is not None and operation.execution.in_step
        ]
        for operation in operations:
            if operation not in busy:
                self._leave(operation)
        ending = [operation.task for operation in busy if operation.task is not None]
        for operation in busy:
            assert operation.execution is not None
            operation.execution.leave_after_step()
        if ending:
            await asyncio.wait(ending, timeout=seconds)
        for operation in operations:
            self._leave(operation)
        left = [*self._tasks, *self._runs.forced]
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)
        await self._hand_back([o for o in operations if not (o.ended or o.gone)])

    # ------------------------------------------------------------ one operation

    async def _keep_running(self, operation: LiveOperation) -> None:
        try:
            with self._tracing.run(
                operation.hosted.service,
                operation.hosted.operation,
                operation.token,
                operation.trace_context,
            ):
                await self._runs.run(operation)
        except (LeftMemory, DatabaseClosed):
            pass
        except asyncio.CancelledError:
            if operation.execution is None or not operation.execution.closed:
                raise
        except Exception:
            # One that escaped would end with its task, unseen; the operation stays in the
            # database and runs again after a restart.
            logger.exception("cannot run the operation", extra={"token": operation.token})
        finally:
            if self._live.get(operation.token) is operation:
                del self._live[operation.token]
            operation.forget_timers()
            # Not by a callback of the task: each is a turn of the loop, for every operation.
            self._tasks.discard(cast("asyncio.Task[None]", operation.task))

    def _deadline_passed(self, operation: LiveOperation) -> None:
        operation.deadline_passed = True
        self._runs.interrupt(operation, Reason.DEADLINE)

    def _cancel(self, operation: LiveOperation) -> None:
        if not operation.cancel_requested:
            operation.cancel_requested = True
            self._runs.interrupt(operation, Reason.CANCEL)

    def _look(self, operation: LiveOperation) -> None:
        if operation.looking:
            operation.look_again = True
            return
        operation.looking = True
        task = self._loop.create_task(self._find_out(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_out(self, operation: LiveOperation) -> None:
        try:
            operation.look_again = True
            while operation.look_again and not operation.gone:
                operation.look_again = False
                await self._find_out_once(operation)
        except DatabaseClosed:
            pass
        except Exception:
            logger.exception(
                "cannot find out what happened to the operation", extra={"token": operation.token}
            )
            self._clock.call_later(_LOOK_AGAIN_SECONDS, self.wake, operation.token)
        finally:
            operation.looking = False
            if operation.gone:
                # It was just leaving memory: what happened to it is for who takes it up to see.
                self._on_ready(self._clock.now_ms())

    async def _find_out_once(self, operation: LiveOperation) -> None:
        token = operation.token
        # In this order: what comes between the two is seen without being counted as seen.
        rows = await self._database.fetch(LOOK, {"token": token})
        signals = await self._database.fetch(LOAD_SIGNALS, {"token": token})
        for epoch, state, wake_seq, cancel_requested_at in rows:
            if epoch != operation.epoch or state != State.RUNNING:
                break
            operation.wake_seq = max(operation.wake_seq, wake_seq)
            if cancel_requested_at is not None:
                self._cancel(operation)
            operation.mailbox.deliver(read_signal(row) for row in signals)
            return
        if not operation.ended:
            self._abandon(operation)

    # ------------------------------------------------------------ leaving memory

    def _forget(self, operation: LiveOperation) -> None:
        operation.gone = True
        if self._live.get(operation.token) is operation:
            del self._live[operation.token]

    def _abandon(self, operation: LiveOperation) -> None:
        self._forget(operation)
        self._leave(operation)

    def _leave(self, operation: LiveOperation) -> None:
        if operation.backoff is not None and not operation.backoff.done():
            operation.backoff.set_result(None)
        if operation.execution is not None:
            operation.execution.leave()

    def _give_up(self, operation: LiveOperation) -> None:
        """Hand back what came while the process drains, so that the next need not wait for it."""
        task = self._loop.create_task(self._hand_back([operation]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_back(self, operations: Sequence[LiveOperation]) -> None:
        now = self._clock.now_ms()
        try:
            writes = [self._database.write(hand_back(o.token, o.epoch, now)) for o in operations]
        except DatabaseClosed:
            return
        for operation, answer in zip(
            operations, await asyncio.gather(*writes, return_exceptions=True), strict=True
        ):
            if isinstance(answer, BaseException):
                # Not needed for safety: the next process takes up running operations as well.
                logger.warning(
                    "cannot hand an operation back",
                    extra={"token": operation.token, "error": repr(answer)},
                )
            elif answer:
                self._on_ready(now)
