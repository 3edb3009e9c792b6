"""Lets time pass whenever nothing else is to do."""

import asyncio
from typing import Protocol

from handlers.testing.clock import FakeClock
from handlers.testing.errors import Stuck

# A few handlers go on within one turn of the loop of each other; so many without a sign of life
# mean that everybody waits.
_QUIET_TURNS = 24
_GRACE_SECONDS = 0.1


class Stage(Protocol):
    """What is conducted."""

    def is_busy(self) -> bool:
        """Whether something runs that ends by itself, in real time."""

    def is_uneasy(self) -> bool:
        """Whether an operation that waits also awaits something real, such as a lock."""

    async def is_due(self) -> bool:
        """Whether something should be happening by now."""

    async def is_lost(self) -> bool:
        """Whether an operation has lost its process, and is to be taken up by another."""

    async def next_moment(self) -> int | None:
        """Return when something happens next by itself, in milliseconds since 1970."""

    def describe(self) -> str:
        """Return what runs, for people."""


class Conductor:
    """Waits, in real time, for what really runs, and skips the time in which nothing does.

    Args:
        clock: The time.
        patience: How many seconds of real time something may take that runs.
    """

    def __init__(self, clock: FakeClock, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self.stage: Stage | None = None
        clock.driven_by(self.advance)

    async def settle(self) -> None:
        """Wait until nothing goes on any more without time passing.

        Raises:
            Stuck: Something takes longer than a test has patience for.
        """
        pulse = self._clock.pulse
        while True:
            beats = pulse.beats
            for _ in range(_QUIET_TURNS):
                await asyncio.sleep(0)
            stage = self._stage()
            if pulse.beats != beats:
                continue
            if stage.is_busy() or await stage.is_due():
                if not await pulse.next(self._patience):
                    raise Stuck(
                        f"nothing has happened for {self._patience:g} s of real time, and yet "
                        f"something runs: {stage.describe()}"
                    )
            elif not (
                (stage.is_uneasy() or await stage.is_lost()) and await pulse.next(_GRACE_SECONDS)
            ):
                return

    async def settle_for_long(self) -> bool:
        """Wait, where an operation awaits something real beside; return whether it has come."""
        return self._stage().is_uneasy() and await self._clock.pulse.next(self._patience)

    async def skip(self, most_ms: int | None = None) -> bool:
        """Skip to the next moment at which something happens, which has then begun.

        Args:
            most_ms: Not farther than this, in milliseconds since 1970.

        Returns:
            False where nothing happens by then.
        """
        moment = await self._stage().next_moment()
        if moment is None or (most_ms is not None and moment > most_ms):
            return False
        self._clock.jump(moment)
        return True

    async def advance(self, to_ms: int) -> None:
        """Let time pass until a moment, in milliseconds since 1970.

        Raises:
            Stuck: Something takes longer than a test has patience for.
        """
        await self.settle()
        while await self.skip(to_ms):
            await self.settle()
        self._clock.jump(to_ms)
        await self.settle()

    def _stage(self) -> Stage:
        if self.stage is None:
            raise RuntimeError("the gateway is not open: async with TestGateway(...) as gateway")
        return self.stage
