"""Writing the journal of one run."""

import asyncio
import logging
from functools import partial

from callbacks.database import Writer
from handlers.errors import LeftMemory
from handlers.journal import Journal, Kind
from handlers.presence import Presence
from handlers.store.journals import AppendJournal, JournalEntry

logger = logging.getLogger(__name__)

WRITE_RETRY_SECONDS = 1.0


class Recorder:
    """Adds entries to an operation's journal under the epoch of this run.

    Args:
        token: The operation.
        epoch: The claim under which it runs.
        journal: Its journal in memory; takes up what is committed.
        store: Where it is written.
        presence: The run.

    Attributes:
        owed: What is queued without anybody waiting for it.
    """

    __slots__ = (
        "_epoch",
        "_presence",
        "_store",
        "journal",
        "owed",
        "token",
    )

    def __init__(
        self, token: str, epoch: int, journal: Journal, store: Writer, presence: Presence
    ) -> None:
        self.token = token
        self.journal = journal
        self._epoch = epoch
        self._store = store
        self._presence = presence
        self.owed: dict[str, tuple[JournalEntry, asyncio.Future[bool]]] = {}

    def entry(
        self,
        key: str,
        kind: Kind,
        *,
        args_hash: bytes | None = None,
        output: bytes | None = None,
        error: str | None = None,
        ref: str | None = None,
        attempt: int = 1,
        wake_at: int | None = None,
    ) -> JournalEntry:
        """Return a new entry, at its place in the journal."""
        return JournalEntry(
            key,
            self.journal.next_ordinal(),
            kind,
            args_hash,
            output,
            error,
            ref,
            attempt,
            wake_at,
            self._presence.clock.now_ms(),
        )

    async def append(self, entry: JournalEntry) -> None:
        """Write an entry, however long the database refuses it.

        Raises:
            LeftMemory: The operation is no longer ours to write.
        """
        while True:
            if self._presence.closed:
                raise LeftMemory
            try:
                # Shielded: a cancel that arrives now must not lose what is being recorded.
                ours = await asyncio.shield(self.append_soon(entry))
            except Exception:
                # Nothing was committed. The handler must not mistake that for a failure of its own.
                logger.exception(
                    "cannot write to the journal; trying again",
                    extra={"token": self.token, "step": entry.key},
                )
                await self._presence.wait(WRITE_RETRY_SECONDS)
                continue
            if not ours:
                self._presence.leave()
                raise LeftMemory
            return

    def append_soon(self, entry: JournalEntry) -> asyncio.Future[bool]:
        """Queue an entry; the future says whether it was ours to write."""
        written: asyncio.Future[bool] = self._store.write(
            AppendJournal(self.token, self._epoch, entry)
        )
        written.add_done_callback(partial(self._appended, entry))
        return written

    def _appended(self, entry: JournalEntry, written: asyncio.Future[bool]) -> None:
        if not written.cancelled() and written.exception() is None and written.result():
            self.journal.add(entry)

    # ------------------------------------------------------------ what cannot be waited for

    def owe(self, entry: JournalEntry) -> None:
        """Queue an entry from where nothing can be awaited; `settle` waits for it."""
        self.owed[entry.key] = (entry, self.append_soon(entry))

    async def settle(self) -> None:
        """Wait for what is owed: nothing may begin that would be recorded without it.

        Raises:
            LeftMemory: The operation is no longer ours to write.
        """
        while self.owed:
            key, (entry, written) = next(iter(self.owed.items()))
            try:
                ours = await asyncio.shield(written)
            except Exception:
                logger.exception(
                    "cannot write to the journal; trying again",
                    extra={"token": self.token, "step": key},
                )
                await self._presence.wait(WRITE_RETRY_SECONDS)
                if self.owed.get(key) == (entry, written):
                    self.owed[key] = (entry, self.append_soon(entry))
                continue
            if not ours:
                self._presence.leave()
                raise LeftMemory
            self.owed.pop(key, None)
