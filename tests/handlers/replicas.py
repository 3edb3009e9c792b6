"""Several processes on one PostgreSQL database, each an engine that can be lost at any moment."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from callbacks.database import Database, open_database
from callbacks.delivery import DeliveryService
from callbacks.leases import Lease
from handlers.engine import Engine, EngineSettings
from handlers.outgoing_calls import OutgoingCalls
from handlers.requests import Started
from handlers.services import ServiceRegistry
from handlers.store.journals import LOAD_JOURNAL, JournalEntry, read_entry
from handlers.store.operations import LOAD, StoredOperation, read_operation
from nexus_spec import PayloadSerializer
from tests.handlers.world import FakeSender, key, request, until_found

LEASE_SECONDS = 1.0

_SERIALIZER = PayloadSerializer()


@dataclass
class Replica:
    """One process."""

    url: str
    services: Sequence[Any]
    settings: EngineSettings = field(default_factory=EngineSettings)
    lease_seconds: float = LEASE_SECONDS
    sender: FakeSender = field(default_factory=FakeSender)
    outgoing: Callable[[Database], OutgoingCalls] | None = None
    database: Database = field(init=False)
    lease: Lease = field(init=False)
    delivery: DeliveryService = field(init=False)
    engine: Engine = field(init=False)
    is_open: bool = False

    async def open(self) -> "Replica":
        """Begin the process."""
        self.database = await open_database(self.url)
        self.lease = Lease(self.database, seconds=self.lease_seconds)
        self.delivery = DeliveryService(self.database, self.sender, lease=self.lease)
        self.engine = Engine(
            ServiceRegistry({"default": self.services}),
            self.database,
            self.delivery,
            lease=self.lease,
            settings=self.settings,
            outgoing=None if self.outgoing is None else self.outgoing(self.database),
        )
        await self.lease.open()
        await self.delivery.open()
        await self.engine.open()
        self.is_open = True
        return self

    async def lose(self) -> None:
        """End the process as SIGKILL does: nothing is handed back, and its lease runs out."""
        self.is_open = False
        self.freeze()
        runner = self.engine._runner
        runner._draining = True
        runner.abandon_all()
        tasks = [*runner._tasks, *self.delivery._tasks, *self.delivery._own_tasks]
        await _end(tasks)
        self.engine._handler_threads.close()
        self.engine._step_threads.shutdown(wait=False, cancel_futures=True)
        await self.database.aclose()

    def freeze(self) -> None:
        """Have it neither renew its lease nor look after anything; what runs goes on running."""
        claimer = self.engine._claimer._task
        for task in [*self.lease._tasks, *([claimer] if claimer is not None else [])]:
            task.cancel()

    def lose_lease(self) -> None:
        """Have its lease run out here and now; it gets it back with its next renewal."""
        self.lease._lose()

    # ------------------------------------------------------------ asking

    async def start(self, operation: str, value: Any = None, **more: Any) -> str:
        """Start an operation here and return its token."""
        answer = await self.engine.start(request(operation, value, **more))
        assert isinstance(answer, Started), answer
        return answer.token

    async def result(self, token: str, operation: str = "run", seconds: float = 10.0) -> Any:
        """Wait here for the operation's result and return it as plain JSON."""
        answer = await self.engine.result(key(operation), token, seconds)
        assert answer is not None
        return _SERIALIZER.decode(answer.content)

    async def stored(self, token: str) -> StoredOperation:
        """Return the operation's row."""
        return read_operation((await self.database.fetch(LOAD, {"token": token}))[0])

    async def journal(self, token: str) -> list[JournalEntry]:
        """Return the operation's journal, in order."""
        rows = await self.database.fetch(LOAD_JOURNAL, {"token": token})
        return [read_entry(row) for row in rows]

    async def waits_at(self, token: str, step: str) -> None:
        """Wait until a key is in the journal."""

        async def is_there() -> bool:
            return step in [entry.key for entry in await self.journal(token)]

        await until_found(is_there)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
