"""An operation's journal in memory, and what it says when the handler runs again."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from handlers.errors import Diverged
from handlers.store.journals import JournalEntry


class Kind(StrEnum):
    """What a journal entry records."""

    STEP = "step"
    TIMER = "timer"
    SIGNAL = "signal"
    CALL = "call"
    PATCH = "patch"
    RETRY = "retry"  # a step's attempt that failed, and the long wait after it
    CANCELLED = "cancelled"  # the handler's own code cancelled a call
    INTERRUPT = "interrupt"


class Reason(StrEnum):
    """Why a handler is interrupted."""

    CANCEL = "cancel"
    DEADLINE = "deadline"


INTERRUPT_KEY = "interrupt"
CANCELLED = "cancelled"
"""The part of a call that says that the handler cancelled it."""

# What a call is of which nothing but a part is recorded.
_CALL_OF_PART = {Kind.RETRY: Kind.STEP, Kind.TIMER: Kind.SIGNAL}


def part_of(key: str, part: str) -> str:
    """Return the key of an entry that belongs to a call beside its own: `approval#1.timeout`."""
    return f"{key}.{part}"


def call_of(key: str) -> str:
    """Return the key of the call that an entry belongs to."""
    name, _, rest = key.rpartition("#")
    number, _, _ = rest.partition(".")
    return f"{name}#{number}"


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call of an earlier run, as the next run is to make it again."""

    key: str
    kind: str
    ordinal: int

    def __str__(self) -> str:
        return f"{self.kind} {self.key!r}"


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
    """What already happened, by key, in the order in which it happened.

    Attributes:
        retries: Of each step that failed and then waited for long, its last such attempt.
    """

    def __init__(self, entries: Iterable[JournalEntry] = ()) -> None:
        self._entries: dict[str, JournalEntry] = {}
        self.retries: dict[str, JournalEntry] = {}
        for entry in entries:
            self.add(entry)
        self._next = max((e.ordinal for e in self._entries.values()), default=0)

    def __iter__(self) -> Iterator[JournalEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def next_ordinal(self) -> int:
        """Return the place of the next entry."""
        self._next += 1
        return self._next

    def add(self, entry: JournalEntry) -> None:
        """Take up an entry that is committed."""
        self._entries[entry.key] = entry
        if entry.kind == Kind.RETRY:
            self.retries[call_of(entry.key)] = entry

    def get(self, key: str) -> JournalEntry | None:
        """Return what is recorded under a key."""
        return self._entries.get(key)

    def find(self, key: str, kind: Kind, args_hash: bytes | None) -> JournalEntry | None:
        """Return what is recorded under a key.

        Raises:
            Diverged: Something else is recorded there: the code has changed under the operation.
        """
        entry = self._entries.get(key)
        if entry is not None:
            _check(entry, key, entry.kind, kind, args_hash)
        return entry

    def find_cancelled(self, key: str, kind: Kind, args_hash: bytes | None) -> JournalEntry | None:
        """Return the record that the handler's own code cancelled this call, if it did.

        Raises:
            Diverged: It was another call.
        """
        entry = self._entries.get(part_of(key, CANCELLED))
        if entry is not None:
            _check(entry, key, (entry.output or b"").decode(), kind, args_hash)
        return entry

    def last_retry(self, key: str, args_hash: bytes | None) -> JournalEntry | None:
        """Return the last failed attempt of a step that was recorded for the wait after it.

        Raises:
            Diverged: The step had other arguments then.
        """
        last = self.retries.get(key)
        if last is not None:
            _check(last, key, Kind.STEP, Kind.STEP, args_hash)
        return last

    def calls(self) -> Mapping[str, Sequence[RecordedCall]]:
        """Return the calls of earlier runs, for each scope in the order in which it made them."""
        if not self._entries:
            return {}
        first: dict[str, RecordedCall] = {}
        for entry in sorted(self._entries.values(), key=lambda entry: entry.ordinal):
            if entry.kind == Kind.INTERRUPT:
                continue
            key = call_of(entry.key)
            if key == entry.key:
                ordinal = first[key].ordinal if key in first else entry.ordinal
                first[key] = RecordedCall(key, entry.kind, ordinal)
            elif key not in first:
                first[key] = RecordedCall(key, _call_of_part(entry), entry.ordinal)
        scopes: dict[str, list[RecordedCall]] = {}
        for call in first.values():
            path = call.key[: call.key.rfind("/") + 1]
            scopes.setdefault(path, []).append(call)
        return scopes

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


def _call_of_part(entry: JournalEntry) -> str:
    if entry.kind == Kind.CANCELLED:
        return (entry.output or b"").decode()
    return _CALL_OF_PART.get(Kind(entry.kind), entry.kind)


def _check(
    entry: JournalEntry, key: str, recorded: str, kind: Kind, args_hash: bytes | None
) -> None:
    if recorded != kind:
        raise Diverged(
            f"the journal has {recorded} {key!r} at this place, the code now asks for {kind} "
            f"{key!r}"
        )
    if entry.args_hash != args_hash:
        raise Diverged(
            f"the {kind} {key!r} was recorded with other arguments than the code now gives it"
        )
