"""A gateway for tests: the real engine on a real database, with a clock that skips time."""

import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from nexusrpc import Link, Operation

from clients.service_names import ServiceNames
from handlers.asking import unknown_token
from handlers.engine import Engine, EngineSettings
from handlers.requests import OperationKey, StartRequest, Succeeded
from handlers.services import DEFAULT_ENDPOINT, ServiceRegistry
from handlers.store.journals import JournalEntry
from handlers.store.operations import LOAD, StoredOperation, read_operation
from handlers.testing.calls import Answers, FakeEndpoints
from handlers.testing.clock import DEFAULT_NOW, FakeClock
from handlers.testing.conductor import Conductor
from handlers.testing.errors import NeverReached, Stuck
from handlers.testing.faults import Faults, keys_of
from handlers.testing.process import Process
from handlers.testing.run import Recorded, Run, recorded_of
from handlers.testing.schema import write_fresh_database
from handlers.values import encode
from nexus_spec import PayloadSerializer

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

_DRAIN_SECONDS = 5.0


class TestGateway:
    """Runs durable operations in a test: for real, but for the time that they wait.

        async with TestGateway([OrdersHandler()]) as gateway:
            run = await gateway.start(Orders.place, OrderIn(item="tea"))
            await run.until_waiting()
            await run.signal("approval", {"ok": True})
            receipt = await run.result()
            assert [step.key for step in run.steps] == ["charge#1", "approval#1", "ship#1"]

    It is the gateway's own engine on a SQLite file in a temporary folder. Steps really run: give
    the handler fakes for what touches the world. Time stands still while anything runs and is
    skipped when nothing does, so an operation that sleeps for a month takes milliseconds. What a
    step awaits of its own takes real time; so does its `timeout=`.

    No plugin is needed: it works in any coroutine, such as `asyncio.run(test())`.

    Args:
        services: Service handler instances.
        now: The time at first, UTC.
        always_replay: The operation leaves memory after everything that it records, and is run
            again over its journal. Nothing else changes, unless the handler does something
            outside of a step that is not the same each time; that pauses it, and `result` says so.
        crash_after: Keys such as `charge#1`. As soon as one is recorded its operation's process
            is lost, and another takes the operation up: once for each operation and key.
        crash_before: Likewise, with the step done and not yet recorded; it is done again.
        calls: What answers `ctx.call`: for each endpoint and operation a function of the input,
            such as `{"shipping": {"book": lambda order: {"id": 1}}}`. It may be `async`, and may
            raise `OperationError` or `HandlerError`. What is sent again is answered as before.
        settings: The engine's bounds.
        patience: How many seconds of real time something may take before the test gives up.

    Raises:
        NeverReached: On leaving the block without an error: no operation came to one of the
            crashes.

    Attributes:
        clock: The time. `await gateway.clock.advance(timedelta(days=1))` lets a day pass.
        serializer: Writes inputs and reads results.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        services: Sequence[Any],
        *,
        now: datetime = DEFAULT_NOW,
        always_replay: bool = False,
        crash_after: str | Iterable[str] = (),
        crash_before: str | Iterable[str] = (),
        calls: Answers | None = None,
        settings: EngineSettings | None = None,
        patience: float = 10.0,
    ) -> None:
        self.clock = FakeClock(now)
        self.serializer = PayloadSerializer()
        self._services = ServiceRegistry({DEFAULT_ENDPOINT: services})
        self._settings = settings or EngineSettings()
        self._faults = Faults(
            crash_before=keys_of(crash_before),
            crash_after=keys_of(crash_after),
            always_replay=always_replay,
        )
        self._calls = FakeEndpoints(calls or {}, self.serializer)
        self._conductor = Conductor(self.clock, patience)
        self._names = ServiceNames()
        self._request_ids = count(1)
        self._folder = AsyncExitStack()
        self._process: Process | None = None
        self._path = Path()

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        folder = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="nexus-test-"))
        self._path = Path(folder) / "nexus.db"
        write_fresh_database(self._path)
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._running.close(0.0)
        finally:
            self._process = self._conductor.stage = None
            await self._folder.aclose()
        if error is None and (keys := self._faults.never_reached()):
            raise NeverReached(f"no operation was to crash at {', '.join(keys)}: {self._seen()}")

    async def restart(self, services: Sequence[Any] | None = None) -> None:
        """Stop the gateway as a deploy does, and start it again on the same database.

        Args:
            services: What is served from now on, such as the next version of the handlers.
        """
        if services is not None:
            self._services = ServiceRegistry({DEFAULT_ENDPOINT: services})
        await self._running.close(_DRAIN_SECONDS)
        await self._open()

    async def crash(self) -> None:
        """Lose the gateway's process, as by `kill -9`, and start another on the same database."""
        await self._running.kill()
        await self._open()

    async def _open(self) -> None:
        self._process = self._conductor.stage = Process(
            self._path, self._services, self._settings, self.clock, self._faults, self._calls
        )
        await self._process.open()

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError("the gateway is not open: async with TestGateway(...) as gateway")
        return self._process

    @property
    def engine(self) -> Engine:
        """The engine, for what has no shorter name here; another one after a restart."""
        return self._running.engine

    @property
    def database(self) -> Path:
        """The SQLite file with all that was recorded; gone when the gateway is closed."""
        return self._path

    # ------------------------------------------------------------ starting

    @overload
    async def start(
        self,
        operation: Operation[InputT, OutputT],
        input: InputT,
        *,
        request_id: str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        links: Sequence[Link] = (),
        caller: str = "",
    ) -> Run[OutputT]: ...

    @overload
    async def start(
        self,
        operation: Operation[Any, Any] | tuple[str, str],
        input: Any = None,
        *,
        request_id: str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        links: Sequence[Link] = (),
        caller: str = "",
    ) -> Run[Any]: ...

    async def start(
        self,
        operation: Operation[Any, Any] | tuple[str, str],
        input: Any = None,
        *,
        request_id: str | None = None,
        timeout: timedelta | None = None,
        headers: Mapping[str, str] | None = None,
        links: Sequence[Link] = (),
        caller: str = "",
    ) -> Run[Any]:
        """Start an operation as a caller does.

        Args:
            operation: `Orders.place`, or the names ("orders", "place").
            input: Its input, written as JSON and read as the handler's input type.
            request_id: The idempotency key: a second start with the same one and the same input
                gives the same operation. A new one by default.
            timeout: How long the caller gives it.
            headers: The caller's own headers.
            links: The caller's links.
            caller: The principal; callers are not authenticated by default.

        Raises:
            nexusrpc.HandlerError: The start was refused.
            nexusrpc.OperationError: The operation has ended already, failed or canceled.
        """
        service, name = self._names_of(operation)
        key = OperationKey(
            endpoint=DEFAULT_ENDPOINT, service=service, operation=name, caller=caller
        )
        content = self.serializer.serialize(input)
        request = StartRequest(
            key=key,
            request_id=request_id or f"request-{next(self._request_ids)}",
            body=content.data,
            content_headers=dict(content.headers),
            headers={field.lower(): value for field, value in (headers or {}).items()},
            links=tuple(links),
            operation_timeout=timeout,
        )
        answer = await self.engine.start(request)
        output_type = self._services.find(DEFAULT_ENDPOINT, service, name).output_type
        if isinstance(answer, Succeeded):
            return Run(self, key, "", output_type, answer)
        return Run(self, key, answer.token, output_type)

    def _names_of(self, operation: Operation[Any, Any] | tuple[str, str]) -> tuple[str, str]:
        if isinstance(operation, Operation):
            return self._names.name_of(operation), operation.name
        return operation

    # ------------------------------------------------------------ what a run asks for

    async def signal(self, token: str, name: str, payload: Any, id: str | None) -> bool:
        """Tell an operation something; see `Run.signal`."""
        return await self.engine.signal(token, name, encode(payload), id)

    async def lose(self, token: str) -> None:
        """Lose the process of one operation; see `Run.crash`."""
        stored = await self.stored(token)
        self._running.lose(token, stored.epoch)
        await self.settle()

    async def settle(self) -> None:
        """Let everything go on until all that is left waits: for time to pass, or for a signal."""
        await self._conductor.settle()

    async def until_ended(self, token: str) -> None:
        """Skip as much time as it takes until an operation has ended.

        Raises:
            Stuck: It cannot go on by itself.
        """

        async def has_ended() -> bool:
            stored = await self.stored(token)
            if stored.state == "paused":
                raise Stuck(f"{self._name(stored)} was paused: {stored.pause_reason}")
            return stored.state.ended

        await self._until(has_ended, token)

    async def until_recorded(self, token: str, key: str) -> Recorded:
        """Skip as much time as it takes until an entry is in the journal; see `Run.until`."""
        found: list[JournalEntry] = []

        async def is_there() -> bool:
            found.extend(entry for entry in self.recorded(token) if entry.key == key)
            if not found and (stored := await self.stored(token)).state.ended:
                raise NeverReached(
                    f"{self._name(stored)} ended ({stored.state}) without {key!r}; it recorded "
                    f"{self._recorded_keys(token)}"
                )
            return bool(found)

        await self._until(is_there, token)
        return recorded_of(found[0])

    async def _until(self, condition: Callable[[], Awaitable[bool]], token: str) -> None:
        while True:
            # Asked before anybody waits for quiet: an operation that the test does not ask for
            # may be in the middle of something that takes long.
            if await condition():
                return
            await self.settle()
            if await condition():
                return
            if not (await self._conductor.skip() or await self._conductor.settle_for_long()):
                stored = await self.stored(token)
                raise Stuck(
                    f"{self._name(stored)} waits for something from outside, such as a signal; "
                    f"so far it recorded {self._recorded_keys(token)}"
                )

    def recorded(self, token: str) -> Sequence[JournalEntry]:
        """Return an operation's journal."""
        return tuple(self._faults.recorded[token])

    async def stored(self, token: str) -> StoredOperation:
        """Return an operation's row.

        Raises:
            nexusrpc.HandlerError: NOT_FOUND.
        """
        rows = await self._running.database.fetch(LOAD, {"token": token})
        if not rows:
            raise unknown_token()
        return read_operation(rows[0])

    def _name(self, stored: StoredOperation) -> str:
        return f"{stored.service}/{stored.operation}"

    def _recorded_keys(self, token: str) -> str:
        return ", ".join(entry.key for entry in self.recorded(token)) or "nothing"

    def _seen(self) -> str:
        keys = {entry.key: None for entries in self._faults.recorded.values() for entry in entries}
        return f"what was recorded is {', '.join(keys) or 'nothing'}"
