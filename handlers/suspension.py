"""Leaving memory while nothing is to do: an operation that waits costs a row, and no memory.

A handler is taken out of memory only when all of it waits in the context's own calls, and the
next of these waits ends later than a few seconds from now. On waking it is run again from its
beginning over its journal. So what a handler awaits of its own, `asyncio.sleep` or a lock, keeps
it in memory, as does an `asyncio.timeout` around a call: neither would outlive a restart either,
and `ctx.sleep` and `ctx.wait_for(..., timeout=...)` do both.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Protocol

from handlers.awaiting import rests
from handlers.clock import Timer
from handlers.interruption import QUIET_TURNS, Interruption
from handlers.presence import Presence
from handlers.recorder import Recorder
from handlers.store.running import Suspended

logger = logging.getLogger(__name__)


class Host(Protocol):
    """Where an operation goes when it leaves memory."""

    def suspend(self, wake_at: int | None) -> "asyncio.Future[Suspended]":
        """Write that the operation is in nobody's memory until then."""

    def suspended(self) -> None:
        """Take note that it is."""

    def woken(self) -> None:
        """Find out what happened to it meanwhile."""

    def interrupted(self) -> None:
        """Take note that its handler was told to end."""


class Suspension:
    """Finds out when one run of a handler may leave memory, and has it leave.

    Args:
        presence: The run.
        interruption: A handler that is to end stays until it has.
        recorder: What is not yet written keeps a handler in memory.
        host: Where it goes.
        branches: The tasks that have made calls, beside the main task.
        after_seconds: Shorter waits are spent in memory; so is the beginning of a wait for
            something from outside, which often comes at once.
    """

    __slots__ = (
        "_after_seconds",
        "_branches",
        "_host",
        "_idle_since",
        "_interruption",
        "_later",
        "_looking",
        "_presence",
        "_recorder",
    )

    def __init__(
        self,
        presence: Presence,
        interruption: Interruption,
        recorder: Recorder,
        host: Host,
        branches: "Iterable[asyncio.Task[Any]]",
        after_seconds: float,
    ) -> None:
        self._presence = presence
        self._interruption = interruption
        self._recorder = recorder
        self._host = host
        self._branches = branches
        self._after_seconds = after_seconds
        self._looking = False
        self._later: Timer | None = None
        self._idle_since = (-1, 0)

    def consider(self) -> None:
        """Look, once the handler has come to rest, whether all of it waits for long."""
        if self._looking or not self._may_soon():
            return
        self._looking = True
        self._look(0, -1)

    @property
    def all_wait(self) -> bool:
        """Whether the handler, as far as is known, waits in nothing but the context's own waits."""
        presence = self._presence
        tasks = [presence.task, *self._branches, *presence.durable]
        return (
            bool(presence.durable)
            and presence.steps == 0
            and not self._recorder.owed
            and all(rests(task, presence) for task in tasks)
        )

    def forget(self) -> None:
        """Look no more: the handler has returned or left."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _look(self, quiet_turns: int, calls: int) -> None:
        presence = self._presence
        if presence.closed:
            self._looking = False
        elif quiet_turns < QUIET_TURNS:
            quiet_turns = quiet_turns + 1 if calls == presence.calls else 0
            presence.loop.call_soon(self._look, quiet_turns, presence.calls)
        else:
            self._looking = False
            self._decide()

    def _may_soon(self) -> bool:
        """Whether nothing that is known here keeps the handler in memory."""
        presence = self._presence
        if (
            presence.closed
            or presence.steps > 0
            # What has come counts as seen already: nobody would be woken by it again.
            or presence.waking
            or self._interruption.is_due
            or not presence.durable
        ):
            return False
        limit = presence.clock.now_ms() + self._after_seconds * 1000
        return all(
            wait.wake_at is None or wait.wake_at > limit for wait in presence.durable.values()
        )

    def _decide(self) -> None:
        presence = self._presence
        if not self._may_soon():
            return  # whatever changes that considers it anew
        if not self.all_wait:
            self._look_later()  # it may have come to rest by then
            return
        if any(wait.by_message for wait in presence.durable.values()):
            now = presence.clock.now_ms()
            if self._idle_since[0] != presence.calls:
                self._idle_since = (presence.calls, now)
            if now - self._idle_since[1] < self._after_seconds * 1000:
                self._look_later()
                return
        self._suspend()

    def _look_later(self) -> None:
        self.forget()
        self._later = self._presence.clock.call_later(self._after_seconds, self.consider)

    def _suspend(self) -> None:
        self._looking = True
        presence = self._presence
        wakes = [wait.wake_at for wait in presence.durable.values() if wait.wake_at is not None]
        presence.hold()
        try:
            written = self._host.suspend(min(wakes, default=None))
        except BaseException:
            presence.release()
            raise
        written.add_done_callback(self._written)

    def _written(self, written: "asyncio.Future[Suspended]") -> None:
        self._looking = False
        if written.cancelled():
            return
        if (error := written.exception()) is not None:
            logger.warning(
                "cannot suspend the operation",
                extra={"token": self._recorder.token, "error": repr(error)},
            )
            self._presence.release()
            self._look_later()
            return
        match written.result():
            case Suspended.DONE:
                self._host.suspended()
                self._presence.leave()
            case Suspended.LOST:
                self._presence.leave()
            case Suspended.WOKEN:
                self._presence.release()
                self._host.woken()
                self._look_later()
