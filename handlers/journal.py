"""An operation's journal in memory, and what it says when the handler runs again."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from handlers.errors import Diverged
from handlers.store.journals import JournalEntry


class Kind(StrEnum):
    """What a journal entry records."""

    STEP = "step"
    TIMER = "timer"
    INTERRUPT = "interrupt"


class Reason(StrEnum):
    """Why a handler is interrupted."""

    CANCEL = "cancel"
    DEADLINE = "deadline"


INTERRUPT_KEY = "interrupt"


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Where in its journal a handler saw its cancellation.

    A call is interrupted when it was pending at that moment or came later; calls that had their
    answer before keep it. So a handler that is replayed is interrupted at the very same await.
    """

    reason: Reason
    ordinal: int
    pending: frozenset[str]
    at: int  # milliseconds since 1970

    def concerns(self, key: str, recorded: JournalEntry | None) -> bool:
        """Whether the call with this key is the one that the interrupt ends."""
        return (
            recorded is None
            or recorded.ordinal > self.ordinal
            or key in self.pending
            or (recorded.wake_at is not None and recorded.wake_at > self.at)
        )


class Journal:
    """What already happened, by key, in the order in which it happened."""

    def __init__(self, entries: Iterable[JournalEntry] = ()) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._next = max((e.ordinal for e in self._entries.values()), default=0)

    def __len__(self) -> int:
        return len(self._entries)

    def next_ordinal(self) -> int:
        """Return the place of the next entry."""
        self._next += 1
        return self._next

    def add(self, entry: JournalEntry) -> None:
        """Take up an entry that is committed."""
        self._entries[entry.key] = entry

    def find(self, key: str, kind: Kind, args_hash: bytes | None) -> JournalEntry | None:
        """Return what is recorded under a key.

        Raises:
            Diverged: Something else is recorded there: the code has changed under the operation.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.kind != kind:
            raise Diverged(
                f"the journal has a {entry.kind} under {key!r}, the code now asks for a {kind}"
            )
        if entry.args_hash != args_hash:
            raise Diverged(
                f"the {kind} {key!r} was recorded with other arguments than the code now gives it"
            )
        return entry

    def interrupt(self) -> Interrupt | None:
        """Return the interrupt that the handler saw in an earlier run."""
        entry = self._entries.get(INTERRUPT_KEY)
        if entry is None or entry.output is None:
            return None
        content = json.loads(entry.output)
        return Interrupt(
            Reason(content["reason"]),
            entry.ordinal,
            frozenset(content["pending"]),
            entry.created_at,
        )
