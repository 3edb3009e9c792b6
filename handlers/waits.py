"""Waits that outlast the process: for a time, and for what is said from outside."""

import asyncio
import json
from datetime import timedelta

from handlers.errors import StepArgumentsInvalid
from handlers.journal import Kind, part_of
from handlers.mailbox import Mailbox
from handlers.presence import DurableWait, Presence, wake
from handlers.recorder import Recorder
from handlers.signal_names import fault_of_name
from handlers.store.journals import JournalEntry
from handlers.suspension import Suspension

TIMEOUT = "timeout"
"""The part of a wait that says until when it waits."""


class Waits:
    """The waits of one run.

    Args:
        presence: The run.
        recorder: Writes when a wait began and how it ended.
        mailbox: What was said to the operation.
        suspension: Told of waits that may be long.
    """

    __slots__ = (
        "_mailbox",
        "_presence",
        "_recorder",
        "_suspension",
    )

    def __init__(
        self, presence: Presence, recorder: Recorder, mailbox: Mailbox, suspension: Suspension
    ) -> None:
        self._presence = presence
        self._recorder = recorder
        self._mailbox = mailbox
        self._suspension = suspension

    async def timer(self, key: str, duration: timedelta) -> JournalEntry:
        """Record when a wait is to end."""
        wake_at = self._presence.clock.now_ms() + max(0, round(duration.total_seconds() * 1000))
        entry = self._recorder.entry(key, Kind.TIMER, wake_at=wake_at)
        await self._recorder.append(entry)
        return entry

    async def sleep(
        self, key: str, duration: timedelta, recorded: JournalEntry | None
    ) -> JournalEntry:
        """Wait until a recorded time, or for so long from now."""
        if recorded is None:
            await self._presence.may_begin()
            recorded = await self.timer(key, duration)
        assert recorded.wake_at is not None
        seconds = (recorded.wake_at - self._presence.clock.now_ms()) / 1000
        if seconds > 0:
            with self._presence.waiting(DurableWait(recorded.wake_at, by_message=False)):
                self._suspension.consider()
                await self._presence.wait(seconds)
            self._suspension.consider()  # what is left may wait for longer
        return recorded

    async def message(
        self, key: str, name: str, dedupe_id: str | None, timeout: timedelta | None
    ) -> JournalEntry:
        """Wait for the next message of a name and record it; without an output it timed out."""
        presence = self._presence
        await presence.may_begin()
        wake_at: int | None = None
        if timeout is not None:
            timer = self._recorder.journal.get(part_of(key, TIMEOUT))
            if timer is None:
                timer = await self.timer(part_of(key, TIMEOUT), timeout)
            wake_at = timer.wake_at
        arrival: asyncio.Future[None] = presence.loop.create_future()
        expected = self._mailbox.expect(name, dedupe_id, arrival)
        try:
            if expected.signal is None:
                await self._until_arrival(arrival, wake_at)
            await presence.may_begin()
            signal = expected.signal
            entry = self._recorder.entry(
                key,
                Kind.SIGNAL,
                output=None if signal is None else signal.payload,
                ref=None if signal is None else str(signal.id),
                error=json.dumps({"type": "TimeoutError"}) if signal is None else None,
            )
            await self._recorder.append(entry)
        except BaseException:
            # Nobody has seen it: the next one that waits for such a message gets it.
            self._mailbox.give_up(expected)
            raise
        if signal is None:
            self._mailbox.give_up(expected)
        return entry

    async def _until_arrival(self, arrival: "asyncio.Future[None]", wake_at: int | None) -> None:
        presence = self._presence
        timer = None
        if wake_at is not None:
            seconds = (wake_at - presence.clock.now_ms()) / 1000
            timer = presence.clock.call_later(seconds, wake, arrival)
        try:
            with presence.waiting(DurableWait(wake_at, by_message=True)):
                self._suspension.consider()
                await presence.until(arrival)
        finally:
            if timer is not None:
                timer.cancel()


def check_wait_name(name: object) -> None:
    """Check that a signal may have this name.

    Raises:
        StepArgumentsInvalid: It may not.
    """
    if not isinstance(name, str):
        raise StepArgumentsInvalid(f"ctx.wait_for takes the signal's name, not {name!r}")
    if fault := fault_of_name(name):
        raise StepArgumentsInvalid(f"{name!r}: {fault}")
