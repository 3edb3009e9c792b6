"""A durable operation while it is in memory."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexusrpc import Link

from callbacks.database import DatabaseClosed, Writer
from handlers.clock import Timer
from handlers.journal import Journal
from handlers.mailbox import Mailbox
from handlers.store.operations import StoredOperation
from handlers.store.running import set_links, set_progress, set_retrying

if TYPE_CHECKING:
    from handlers.execution import Execution
    from handlers.services import HostedOperation


@dataclass(eq=False, slots=True, kw_only=True)
class LiveOperation:
    """What the engine keeps of an operation that it runs."""

    token: str
    hosted: "HostedOperation"
    caller: str
    request_id: str
    headers: Mapping[str, str]
    content_headers: Mapping[str, str]
    links: tuple[Link, ...]
    input: bytes
    deadline_at: int | None
    trace_context: str | None
    created_at: int
    store: Writer
    epoch: int = 1
    wake_seq: int = 0  # what was seen of what happened to it from outside
    attempts: int = 0
    cancel_requested: bool = False
    deadline_passed: bool = False
    ended: bool = False
    gone: bool = False  # out of memory, and nothing more is to be written of it here
    paused: bool = False
    handler_links: list[Link] = field(default_factory=list)
    journal: Journal = field(default_factory=Journal)
    mailbox: Mailbox = field(default_factory=Mailbox)
    looking: bool = False
    look_again: bool = False
    execution: "Execution | None" = None
    task: "asyncio.Task[None] | None" = None
    backoff: "asyncio.Future[None] | None" = None
    timers: list[Timer] = field(default_factory=list)
    first_input: Callable[[], Any] | None = None
    progress: str | None = None
    retrying: dict[str, dict[str, Any]] = field(default_factory=dict)
    _progress_write: "asyncio.Future[bool] | None" = None

    @classmethod
    def load(
        cls,
        stored: StoredOperation,
        hosted: "HostedOperation",
        journal: Journal,
        mailbox: Mailbox,
        store: Writer,
    ) -> "LiveOperation":
        """Bring an operation back from its row, its journal and what was said to it."""
        return cls(
            token=stored.token,
            hosted=hosted,
            caller=stored.caller,
            request_id=stored.request_id,
            headers=json.loads(stored.headers),
            content_headers=json.loads(stored.content_headers),
            links=links_from_json(stored.links),
            input=stored.input,
            deadline_at=stored.deadline_at,
            trace_context=stored.trace_context,
            created_at=stored.created_at,
            store=store,
            epoch=stored.epoch,
            wake_seq=stored.wake_seq,
            attempts=stored.attempts,
            cancel_requested=stored.cancel_requested_at is not None,
            handler_links=list(links_from_json(stored.handler_links)),
            journal=journal,
            mailbox=mailbox,
            progress=stored.progress,
        )

    def set_progress(self, progress: str) -> None:
        """Show progress; while one write is under way only the latest value waits."""
        self.progress = progress
        if self._progress_write is None:
            self._write_progress(progress)

    def flush_progress(self) -> None:
        """Write the latest progress at once: the operation is about to end."""
        if self._progress_write is not None and self.progress is not None:
            self._write_progress(self.progress)

    def _write_progress(self, progress: str) -> None:
        self._progress_write = self.store.write(set_progress(self.token, self.epoch, progress))

        def written(done: asyncio.Future[bool]) -> None:
            self._progress_write = None
            if done.cancelled() or done.exception() is not None or not done.result():
                return  # progress is for show: the next one may get through
            if self.progress is not None and self.progress != progress:
                with contextlib.suppress(DatabaseClosed):
                    self._write_progress(self.progress)

        self._progress_write.add_done_callback(written)

    def set_retrying(self, step: str, shown: dict[str, Any] | None) -> None:
        """Show operators the step that waits for its next attempt, or that it is done."""
        self.retrying.pop(step, None)
        if shown is not None:
            self.retrying[step] = shown
        latest = next(reversed(self.retrying.values()), None)
        write = self.store.write(
            set_retrying(self.token, self.epoch, None if latest is None else json.dumps(latest))
        )
        write.add_done_callback(lambda done: done.cancelled() or done.exception())

    def add_link(self, link: Link) -> None:
        """Keep a link of the handler, once."""
        if link in self.handler_links:
            return
        self.handler_links.append(link)
        write = self.store.write(
            set_links(self.token, self.epoch, links_to_json(self.handler_links))
        )
        write.add_done_callback(lambda done: done.cancelled() or done.exception())

    def forget_timers(self) -> None:
        """Cancel what would still happen to the operation in memory."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


def links_to_json(links: "list[Link] | tuple[Link, ...]") -> str:
    """Return links as they are stored."""
    return json.dumps([[link.url, link.type] for link in links]) if links else "[]"


def links_from_json(text: str) -> tuple[Link, ...]:
    """Return links from what is stored."""
    if text == "[]":
        return ()
    return tuple(Link(url=url, type=kind) for url, kind in json.loads(text))
