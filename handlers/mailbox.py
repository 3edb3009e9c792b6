"""What was said to an operation and is not yet consumed: signals, and completions of its calls."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from handlers.journal import CANCELLED, Journal, Kind, part_of
from handlers.presence import wake
from handlers.store.signals import StoredSignal


@dataclass(eq=False, slots=True)
class Expected:
    """A message that somebody waits for."""

    name: str
    dedupe_id: str | None
    arrival: "asyncio.Future[None]"
    signal: StoredSignal | None = None

    def fits(self, signal: StoredSignal) -> bool:
        """Whether it is this one."""
        return self.name == signal.name and self.dedupe_id in (None, signal.dedupe_id)


class Mailbox:
    """Messages in the order in which they came; each goes to the first that waits for it."""

    __slots__ = (
        "_expected",
        "_taken",
        "_waiting",
    )

    def __init__(self, signals: Iterable[StoredSignal] = ()) -> None:
        self._waiting: dict[int, StoredSignal] = {}
        self._taken: set[int] = set()
        self._expected: list[Expected] = []
        if signals:
            self.deliver(signals)

    def __len__(self) -> int:
        return len(self._waiting)

    def deliver(self, signals: Iterable[StoredSignal]) -> None:
        """Take up messages; those that are known already are ignored."""
        for signal in signals:
            if signal.id not in self._waiting and signal.id not in self._taken:
                self._waiting[signal.id] = signal
        self._hand_out()

    def expect(self, name: str, dedupe_id: str | None, arrival: "asyncio.Future[None]") -> Expected:
        """Wait for the next message of a name; it comes with `arrival`, perhaps at once."""
        expected = Expected(name, dedupe_id, arrival)
        self._expected.append(expected)
        self._hand_out()
        return expected

    def give_up(self, expected: Expected) -> None:
        """Wait no longer; a message that came all the same is the next one's."""
        if expected in self._expected:
            self._expected.remove(expected)
        if (signal := expected.signal) is not None:
            expected.signal = None
            self._taken.discard(signal.id)
            # In its old place: messages are handed out in the order in which they came.
            self._waiting = dict(sorted({**self._waiting, signal.id: signal}.items()))
            self._hand_out()

    def forget_consumed(self, journal: Journal) -> None:
        """Drop what the journal says was consumed: the handler runs again."""
        self._expected.clear()
        for signal_id in consumed(journal):
            self._taken.add(signal_id)
            self._waiting.pop(signal_id, None)

    def _hand_out(self) -> None:
        for expected in tuple(self._expected):
            for signal in self._waiting.values():
                if expected.fits(signal):
                    del self._waiting[signal.id]
                    self._taken.add(signal.id)
                    expected.signal = signal
                    self._expected.remove(expected)
                    wake(expected.arrival)
                    break


def consumed(journal: Journal) -> set[int]:
    """Return the ids of the messages that a journal's calls got, and that their handler saw."""
    return {
        int(entry.ref)
        for entry in journal
        if entry.kind == Kind.SIGNAL
        and entry.ref is not None
        and journal.get(part_of(entry.key, CANCELLED)) is None
    }
