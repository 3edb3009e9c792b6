"""Cancel and deadline: how a handler comes to be interrupted at the same await on every run."""

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial

from callbacks.database import DatabaseClosed
from handlers.errors import LeftMemory
from handlers.journal import INTERRUPT_KEY, Interrupt, Kind, Reason
from handlers.presence import Presence, wake
from handlers.recorder import WRITE_RETRY_SECONDS, Recorder
from handlers.store.journals import JournalEntry

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.2
QUIET_TURNS = 8
"""A handler that made no call for so many turns of the loop has come to rest."""


class Interruption:
    """Raises `CancelledError` in a handler that is to end.

    Args:
        presence: The run.
        recorder: Records where the handler saw it.
        on_interrupted: Called when the handler has been cancelled, or would have been if its
            own code did not have to cancel something first.

    Attributes:
        interrupted: The handler was told.
        pending: The calls that are under way.
        where: Where the handler saw it, once that is recorded, or about to be.
        is_due: The handler is to be told, also where that could not be recorded yet.
    """

    __slots__ = (
        "_cancelled_again",
        "_halts",
        "_on_interrupted",
        "_overdue",
        "_presence",
        "_recorder",
        "_settling",
        "_write",
        "interrupted",
        "is_due",
        "pending",
        "where",
    )

    def __init__(
        self, presence: Presence, recorder: Recorder, on_interrupted: Callable[[], None]
    ) -> None:
        self.interrupted = False
        self.pending: set[str] = set()
        self.where: Interrupt | None = recorder.journal.interrupt()
        self.is_due = self.where is not None
        self._presence = presence
        self._recorder = recorder
        self._on_interrupted = on_interrupted
        self._write: asyncio.Future[bool] | None = None
        self._halts: list[asyncio.Future[None]] = []
        self._settling = False
        self._cancelled_again = 0
        self._overdue = False
        if self.where is not None:
            self._interrupt_where_it_waits()

    def interrupt(self, reason: Reason) -> None:
        """Record that the handler is to end, then raise `CancelledError` where it waits.

        What begins before that is recorded waits for it; no further step begins.
        """
        if self._presence.closed or self.where is not None:
            return
        self.is_due = True
        pending = sorted(self.pending)
        entry = self._recorder.entry(
            INTERRUPT_KEY,
            Kind.INTERRUPT,
            output=json.dumps({"reason": reason, "pending": pending}).encode(),
        )
        self.where = Interrupt(reason, entry.ordinal, frozenset(pending), entry.created_at)
        self._record(entry)

    def is_at(self, key: str, entry: JournalEntry | None) -> bool:
        """Whether a call is the one at which the handler is to be interrupted."""
        if self._presence.closed:
            raise LeftMemory
        return self.where is not None and not self.interrupted and self.where.concerns(key, entry)

    async def here(self) -> None:
        """Wait for the interruption, at a call that it concerns."""
        halt: asyncio.Future[None] = self._presence.loop.create_future()
        self._halts.append(halt)
        if self._write is None or self._write.done():
            self._settle()
        await self._presence.until(halt)
        # The cancellation arrives here, unless the main task does not wait for this one. Then it
        # went on when this happened first, and goes on now.
        await asyncio.sleep(0)
        self._presence.check()

    async def cancelled_again(self) -> None:
        """Wait, at a call that the handler's own code cancelled, until it does so again.

        It did so before it was interrupted, so the interruption waits for it.
        """
        self._cancelled_again += 1
        try:
            await self._presence.until(self._presence.loop.create_future())
        finally:
            self._cancelled_again -= 1
            if self.where is not None and not self.interrupted and not self._cancelled_again:
                if self._halts:
                    self._settle()
                else:
                    self._interrupt_where_it_waits()

    # ------------------------------------------------------------ bringing it about

    def _record(self, entry: JournalEntry) -> None:
        if self._presence.closed:
            return
        try:
            self._write = self._recorder.append_soon(entry)
        except DatabaseClosed:
            return  # the next process finds the request
        self._write.add_done_callback(partial(self._recorded, entry))

    def _recorded(self, entry: JournalEntry, written: asyncio.Future[bool]) -> None:
        if self._presence.closed or written.cancelled():
            return
        if (error := written.exception()) is not None:
            logger.error(
                "cannot record the cancellation",
                extra={"token": self._recorder.token, "error": repr(error)},
            )
            # It may be recorded all the same: it stays in force, and the same is written again.
            self._write = self._presence.loop.create_future()
            self._presence.clock.call_later(WRITE_RETRY_SECONDS, self._record, entry)
        elif written.result():
            self._settle()
        else:
            self._presence.leave()

    def _settle(self) -> None:
        """Interrupt the handler once every branch has come to its next call.

        A branch that were cut off before its first call would have no number, on one run but not
        on the next, and those that the cleanup begins would get other keys.
        """
        if not self._settling:
            self._settling = True
            self._settle_further(0, -1)

    def _settle_further(self, quiet_turns: int, calls: int) -> None:
        if self._presence.closed or self.interrupted or self.where is None:
            self._settling = False
        elif quiet_turns < QUIET_TURNS:
            quiet_turns = quiet_turns + 1 if calls == self._presence.calls else 0
            self._presence.loop.call_soon(self._settle_further, quiet_turns, self._presence.calls)
        else:
            self._settling = False
            if self._cancelled_again:
                self._wait_for_its_own()
            elif self._halts or not self.where.pending.isdisjoint(self.pending):
                self._cancel_handler()
            else:
                # On its way between calls: the next one that the interrupt concerns brings it
                # about, here as on every later run.
                self._interrupt_where_it_waits()

    def _interrupt_where_it_waits(self, calls: int = -1) -> None:
        """Interrupt a handler that makes no more calls, for it waits for something of its own."""
        if self._presence.closed or self.interrupted or self.where is None:
            return
        if self._cancelled_again:
            self._wait_for_its_own()
        elif calls == self._presence.calls:
            self._cancel_handler()
        else:
            self._presence.clock.call_later(
                _IDLE_SECONDS, self._interrupt_where_it_waits, self._presence.calls
            )

    def _wait_for_its_own(self) -> None:
        """Let the handler cancel first what it cancelled before; but not for ever."""
        if not self._overdue:
            self._overdue = True
            self._on_interrupted()

    def _cancel_handler(self) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        self._on_interrupted()
        # Always through the handler's main task, so that a gather sees the same on every run.
        self._presence.task.cancel()
        self._release_halts()

    def _release_halts(self) -> None:
        for halt in self._halts:
            wake(halt)
        self._halts.clear()
