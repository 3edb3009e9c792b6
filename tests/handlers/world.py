"""An engine on a real SQLite file that can die at any moment and be opened again."""

import asyncio
import functools
import itertools
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from nexusrpc import Content, HandlerError, Link, OperationError

from callbacks.database import Database, Row, SqliteDatabase, Statement, Transaction, Write
from callbacks.delivery import DeliveryService, DeliverySettings
from callbacks.delivery_queries import CALLBACKS_OF
from callbacks.leases import Lease
from callbacks.outbox import Registration
from clients.sender import SentResponse
from gateway.schema import migrate
from handlers.clock import Clock
from handlers.engine import Engine, EngineSettings
from handlers.outgoing_calls import OutgoingCalls
from handlers.requests import OperationKey, Outcome, Started, StartRequest, Succeeded
from handlers.services import ServiceRegistry
from handlers.store.journals import LOAD_JOURNAL, AppendJournal, JournalEntry, read_entry
from handlers.store.operations import LOAD, StoredOperation, read_operation
from handlers.store.signals import Received, RecordSignal
from nexus_spec import Headers, PayloadSerializer

T = TypeVar("T")


@functools.cache
def _fresh_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fresh.db"
        migrate(f"sqlite:///{path}")
        return path.read_bytes()


SERIALIZER = PayloadSerializer()
IN_MEMORY = EngineSettings(suspend_after_seconds=1e9)
"""What waits stays in memory, so that every restart runs it again at once."""
_numbers = itertools.count(1)


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""

    async def ask() -> bool:
        return bool(condition())

    await until_found(ask, seconds)


async def until_found(ask: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> None:
    """Wait for a condition that is asked of the database, with a deadline."""
    async with asyncio.timeout(seconds):
        while not await ask():  # noqa: ASYNC110  # there is no Event for what a file holds
            await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Post:
    """A completion as it was sent."""

    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> list[str]:
        """Return a header's values."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


Answer = Callable[[Post], Awaitable[SentResponse]]


@dataclass
class FakeSender:
    """Records what is sent and answers as told."""

    answer: Answer | None = None
    posts: list[Post] = field(default_factory=list)
    closed: bool = False

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        """Record, then answer."""
        post = Post(url, list(headers), body)
        self.posts.append(post)
        return await self.answer(post) if self.answer is not None else response(200)

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


def response(status: int, headers: Mapping[str, str] | None = None) -> SentResponse:
    """Return an answer without a body."""
    return SentResponse(status, Headers.from_pairs((headers or {}).items()), b"", "192.0.2.1:80")


@dataclass(frozen=True)
class Tell:
    """A write that does nothing but notify, as other writes do of what they changed."""

    channel: str
    payload: str = ""
    subject: str | None = None

    async def apply(self, tx: Transaction) -> None:
        """Notify."""
        await tx.notify(self.channel, self.payload)


class MortalDatabase(SqliteDatabase):
    """Dies at a journal entry: nothing is committed, and nobody gets an answer, from then on.

    Args:
        path: The file.
        entries: How many entries are still written and seen.
        last_is_written: The entry at which it dies is written, but nobody learns of it.
    """

    def __init__(
        self, path: Path, entries: int | None = None, *, last_is_written: bool = False
    ) -> None:
        super().__init__(path)
        self.entries = entries
        self.dead = asyncio.Event()
        self.last: asyncio.Future[Any] | None = None
        self.refuses: Callable[[Write[Any]], Exception | None] = lambda write: None
        self.loses_reply: Callable[[Write[Any]], bool] = lambda write: False
        self.refuses_query: Callable[[Statement], Exception | None] = lambda statement: None
        self._last_is_written = last_is_written

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Write, refuse or die."""
        nobody: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self.dead.is_set():
            return nobody
        if (error := self.refuses(write)) is not None:
            nobody.set_exception(error)
            return nobody
        if self.entries is not None and type(write).__name__ == AppendJournal.__name__:
            if self.entries == 0:
                self.dead.set()
                if self._last_is_written:
                    self.last = super().write(write)
                return nobody
            self.entries -= 1
        written = super().write(write)
        if not self.loses_reply(write):
            return written
        written.add_done_callback(lambda _: nobody.set_exception(OSError("connection reset")))
        return nobody

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        """Run a query or refuse it."""
        if (error := self.refuses_query(statement)) is not None:
            raise error
        return await super().fetch(statement, params)


@dataclass
class World:
    """One process: open it, kill it or close it, and open the next one on the same file."""

    path: Path
    services: Sequence[Any]
    settings: EngineSettings = field(default_factory=lambda: IN_MEMORY)
    delivery_settings: DeliverySettings = field(default_factory=DeliverySettings)
    sender: FakeSender = field(default_factory=FakeSender)
    now: Callable[[], int] | None = None
    clock: Clock = field(default_factory=Clock)
    outgoing: Callable[[Database], OutgoingCalls] | None = None
    engine: Engine = field(init=False)
    database: MortalDatabase = field(init=False)
    lease: Lease = field(init=False)
    delivery: DeliveryService = field(init=False)
    is_open: bool = False

    async def open(self, entries: int | None = None, *, last_is_written: bool = False) -> None:
        """Begin a process."""
        if not self.path.exists():
            self.path.write_bytes(_fresh_database())
        self.database = MortalDatabase(self.path, entries, last_is_written=last_is_written)
        options: dict[str, Any] = {} if self.now is None else {"now": self.now}
        self.lease = Lease(self.database)
        self.delivery = DeliveryService(
            self.database,
            self.sender,
            self.delivery_settings,
            lease=self.lease,
            draw=lambda: 0.5,
            **options,
        )
        self.engine = Engine(
            ServiceRegistry({"default": self.services}),
            self.database,
            self.delivery,
            lease=self.lease,
            settings=self.settings,
            clock=self.clock,
            outgoing=None if self.outgoing is None else self.outgoing(self.database),
        )
        self.is_open = True
        await self.lease.open()
        await self.delivery.open()
        await self.engine.open()

    async def close(self, drain_seconds: float = 5.0) -> None:
        """End the process as SIGTERM does."""
        self.is_open = False
        await self.engine.close(drain_seconds)
        await self.delivery.close(drain_seconds)
        await self.lease.close()
        self.database.close()

    async def kill(self) -> None:
        """End the process as SIGKILL does: nothing more is written, no code gets a chance."""
        self.is_open = False
        self.database.dead.set()
        engine, runner = self.engine, self.engine._runner
        runner._draining = True
        runner.abandon_all()
        tasks: list[asyncio.Task[Any]] = [*runner._tasks, *runner._runs.forced]
        if engine._claimer._task is not None:
            tasks.append(engine._claimer._task)
        tasks += self.delivery._tasks
        tasks += self.delivery._own_tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        engine._handler_threads.close()
        engine._step_threads.shutdown(wait=False, cancel_futures=True)
        self.database.close()

    async def reopen(self, entries: int | None = None, *, last_is_written: bool = False) -> None:
        """Kill the process and begin the next."""
        await self.kill()
        await self.open(entries, last_is_written=last_is_written)

    # ------------------------------------------------------------ asking

    def request(self, operation: str, value: Any = None, **more: Any) -> StartRequest:
        """Return a start request of service `Work`."""
        return request(operation, value, **more)

    async def start(self, operation: str, value: Any = None, **more: Any) -> str:
        """Start a durable or custom operation and return its token."""
        answer = await self.engine.start(self.request(operation, value, **more))
        assert isinstance(answer, Started), answer
        return answer.token

    async def stored(self, token: str) -> StoredOperation:
        """Return the operation's row."""
        return read_operation((await self.database.fetch(LOAD, {"token": token}))[0])

    async def journal(self, token: str) -> list[JournalEntry]:
        """Return the operation's journal, in order."""
        rows = await self.database.fetch(LOAD_JOURNAL, {"token": token})
        return [read_entry(row) for row in rows]

    async def callbacks(self, token: str) -> list[tuple[Any, ...]]:
        """Return (id, slot, url, state, attempt, next_at, ...) of each."""
        return list(await self.database.fetch(CALLBACKS_OF, {"token": token}))

    async def ended(self, token: str, seconds: float = 10.0) -> StoredOperation:
        """Wait for the operation's end and return its row."""
        async with asyncio.timeout(seconds):
            while not (stored := await self.stored(token)).state.ended:
                with suppress(OperationError):
                    asked = replace(key(stored.operation), caller=stored.caller)
                    await self.engine.result(asked, token, 0.5)
        return stored

    async def result(self, token: str) -> Any:
        """Wait for the operation's result and return it as plain JSON."""
        stored = await self.ended(token)
        assert stored.state.value == "succeeded", (stored.failure, stored.error_detail)
        headers = json.loads(stored.output_headers or "{}")
        return SERIALIZER.decode(Content(headers=headers, data=stored.output or b""))

    async def failure(self, token: str) -> tuple[str, str]:
        """Wait for the operation's end and return its state and message."""
        stored = await self.ended(token)
        return stored.state.value, json.loads(stored.failure or b"{}").get("message", "")

    async def waits_at(self, token: str, step: str) -> None:
        """Wait until a key is in the journal."""

        async def is_there() -> bool:
            return step in [entry.key for entry in await self.journal(token)]

        await until_found(is_there)

    async def paused(self, token: str) -> str:
        """Wait until the operation is paused and out of memory; return why."""

        async def is_paused() -> bool:
            return (await self.stored(token)).state == "paused" and not self.engine.live

        await until_found(is_paused)
        return (await self.stored(token)).pause_reason or ""

    async def suspended(self, token: str) -> StoredOperation:
        """Wait until the operation waits out of memory; return its row."""

        async def is_suspended() -> bool:
            stored = await self.stored(token)
            return stored.state == "ready" and not self.engine._runner.is_live(token)

        await until_found(is_suspended)
        return await self.stored(token)

    async def interrupted(self, token: str) -> None:
        """Wait until the operation's handler was told to end, which is after that was recorded."""

        def is_told() -> bool:
            operation = self.engine._runner._live.get(token)
            execution = None if operation is None else operation.execution
            return execution is not None and execution.interrupted

        await until(is_told)

    async def something_is_due(self) -> None:
        """Have the engine look for what is due, as after a write that made something so."""
        await self.database.write(Tell("due"))

    async def something_was_missed(self) -> None:
        """Have the engine look for everything, as after a lost connection, or a minute."""
        await self.database.write(Tell(""))

    async def signal(
        self, token: str, name: str, payload: Any = None, dedupe_id: str | None = None
    ) -> Received:
        """Tell the operation something."""
        dedupe_id = f"s{next(_numbers)}" if dedupe_id is None else dedupe_id
        data = SERIALIZER.serialize(payload).data or b"null"
        signal = RecordSignal(token, name, dedupe_id, data, self.clock.now_ms())
        return await self.database.write(signal)

    async def delivered(self, token: str) -> None:
        """Wait until every callback is delivered."""

        async def are_delivered() -> bool:
            return {row[3] for row in await self.callbacks(token)} == {"delivered"}

        await until_found(are_delivered)

    async def cancel(self, token: str) -> None:
        """Cancel as the caller does."""
        stored = await self.stored(token)
        await self.engine.cancel(key(stored.operation), token, {})


def request(operation: str, value: Any = None, **more: Any) -> StartRequest:
    """Return a start request of service `Work`, with a request id of its own."""
    content = SERIALIZER.serialize(value)
    defaults: dict[str, Any] = {
        "key": key(operation),
        "request_id": f"r{next(_numbers)}",
        "body": content.data,
        "content_headers": dict(content.headers),
    }
    return StartRequest(**{**defaults, **more})


def key(operation: str) -> OperationKey:
    """Return the key of an operation of service `Work`."""
    return OperationKey(endpoint="default", service="Work", operation=operation, caller="")


def callback(number: int = 1, host: str = "caller.example") -> Registration:
    """Return a callback registration."""
    return Registration(f"http://{host}/{number}", f"http://{host}:80", {"token": f"t{number}"})


def value_of(outcome: Outcome) -> Any:
    """Return the result of an answer, as plain JSON."""
    assert isinstance(outcome, Succeeded)
    return SERIALIZER.decode(outcome.content)


async def error_of(answer: Awaitable[Any]) -> HandlerError | OperationError:
    """Return the error that an answer is."""
    try:
        got = await answer
    except (HandlerError, OperationError) as error:
        return error
    raise AssertionError(f"answered {got!r}")


def links(*names: str) -> tuple[Link, ...]:
    """Return links."""
    return tuple(Link(url=f"https://{name}.example/", type="example.Link") for name in names)


HOUR = timedelta(hours=1)
