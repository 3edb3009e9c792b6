"""Where an operation is to lose its process, and its memory, on purpose."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from handlers.store.journals import JournalEntry


def keys_of(keys: str | Iterable[str]) -> frozenset[str]:
    """Return one key, or several, as a set."""
    return frozenset([keys] if isinstance(keys, str) else keys)


@dataclass
class Faults:
    """What happens to operations on purpose, each time once for each operation.

    Attributes:
        crash_before: The process is lost before the entries of these keys are committed.
        crash_after: It is lost right after they are.
        always_replay: Every entry takes its operation out of memory.
        reached: The keys of the crashes that have happened.
        recorded: What each operation has in its journal, in the order of the commits.
    """

    crash_before: frozenset[str] = frozenset()
    crash_after: frozenset[str] = frozenset()
    always_replay: bool = False
    reached: set[str] = field(default_factory=set)
    recorded: defaultdict[str, list[JournalEntry]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _had: set[tuple[str, str]] = field(default_factory=set)

    def crashes_before(self, token: str, key: str) -> bool:
        """Whether the process is to be lost now, with this entry unwritten."""
        return self._crashes(self.crash_before, "before", token, key)

    def crashes_after(self, token: str, key: str) -> bool:
        """Whether the process is to be lost as soon as this entry is written."""
        return self._crashes(self.crash_after, "after", token, key)

    def never_reached(self) -> list[str]:
        """Return the keys at which the process should have been lost, and never was."""
        return sorted((self.crash_before | self.crash_after) - self.reached)

    def _crashes(self, keys: frozenset[str], when: str, token: str, key: str) -> bool:
        if key not in keys or (token, f"{when} {key}") in self._had:
            return False
        self._had.add((token, f"{when} {key}"))
        self.reached.add(key)
        return True
