"""Delivery services over a real outbox, with a fake sender, a fake clock and faults on demand."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from callbacks import outbox
from callbacks.attempts import Sign
from callbacks.database import (
    Database,
    OutcomeUnknown,
    Row,
    Statement,
    Transaction,
    Write,
    greatest,
    open_database,
    table_of,
)
from callbacks.database.database import Subscriber
from callbacks.dead_letters import Notice
from callbacks.delivery import DeliveryService, DeliverySettings
from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.leases import Lease
from callbacks.outbox import Delivery, Registration, Terms
from callbacks.records import CallbackRecord, DestinationRecord, ReplicaRecord
from callbacks.standings import STANDING_OF, Standing, read_standing
from clients.sender import SentResponse
from nexus_spec import Headers
from tests.support.eventually import eventually

T = TypeVar("T")

HOUR_MS = 3_600_000
BODY = b'{"done": true}'
Answer = SentResponse | Exception

_replica = table_of(ReplicaRecord)
_destination = table_of(DestinationRecord)
_callback = table_of(CallbackRecord)
_NOT_LOOKED_FOR = Statement(
    sa.select(_callback.c.destination, sa.func.min(_callback.c.next_at), _destination.c.wake_at)
    .select_from(_callback.outerjoin(_destination, _destination.c.name == _callback.c.destination))
    .where(_callback.c.state == "due", _destination.c.disabled_at.is_(None))
    .group_by(
        _callback.c.destination,
        _destination.c.wake_at,
        _destination.c.open_until,
        _destination.c.probe_until,
        _destination.c.not_before,
    )
    .having(
        sa.or_(
            _destination.c.wake_at.is_(None),
            _destination.c.wake_at
            > greatest(
                sa.func.min(_callback.c.next_at),
                sa.func.coalesce(_destination.c.open_until, 0),
                sa.func.coalesce(_destination.c.probe_until, 0),
                sa.func.coalesce(_destination.c.not_before, 0),
                # Where a destination was looked at and had more: its turn comes again.
                sa.bindparam("now", type_=sa.BigInteger),
            ),
        )
    )
)
_ROW = Statement(
    sa.select(
        _callback.c.state,
        _callback.c.attempt,
        _callback.c.next_at,
        _callback.c.id,
        _callback.c.reason,
    ).where(
        _callback.c.token == sa.bindparam("token_is"), _callback.c.slot == sa.bindparam("slot_is")
    )
)
_EXPIRE = Statement(
    sa.update(_replica).where(_replica.c.id == sa.bindparam("row_id")).values(lease_until=0)
)


def answer(status: int, **headers: str) -> SentResponse:
    named = Headers.from_pairs((k.replace("_", "-"), v) for k, v in headers.items())
    return SentResponse(status, named, b"\xffexcerpt", "192.0.2.1:80")


def one_rule(**fields: Any) -> DeliveryRules:
    """The same rule for all destinations."""
    return DeliveryRules(DeliveryRule(**fields))


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, with a deadline."""

    async def ask() -> bool | None:
        return bool(condition()) or None

    await eventually(ask)


@dataclass
class Sender:
    answers: list[Answer] = field(default_factory=list)
    of_host: dict[str, Answer] = field(default_factory=dict)  # what it always answers
    posts: list[tuple[str, list[tuple[str, str]], bytes]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    active: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    closed: bool = False

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        self.posts.append((url, list(headers), body))
        host = url.split("/")[2]
        self.active[host] += 1
        self.most[host] = max(self.most[host], self.active[host])
        try:
            if self.gate is not None and not host.startswith("fast"):
                await self.gate.wait()
        finally:
            self.active[host] -= 1
        got = self.of_host.get(host) or (self.answers.pop(0) if self.answers else answer(200))
        if isinstance(got, Exception):
            raise got
        return got

    async def aclose(self) -> None:
        self.closed = True


class FaultyDatabase:
    """A database that refuses writes or loses their replies, as it is told.

    Args:
        real: Does the work.
        together: Another one works on the same real one, and outlives this.
    """

    def __init__(self, real: Database, *, together: bool = False) -> None:
        self.real = real
        self.dialect: Literal["sqlite", "postgresql"] = real.dialect
        self.shared = real.shared or together
        self._together = together
        self.refuses: Callable[[Write[Any]], bool] = lambda _: False
        self.loses_reply: Callable[[Write[Any]], bool] = lambda _: False
        self.holds_up: Callable[[Write[Any]], asyncio.Event | None] = lambda _: None

    @property
    def batches(self) -> int:
        return self.real.batches

    @property
    def writes(self) -> int:
        return self.real.writes

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        if self.refuses(write):
            refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            refused.set_exception(OSError("disk full"))
            return refused
        if self.loses_reply(write):
            return asyncio.ensure_future(self._lose(write))
        if (gate := self.holds_up(write)) is not None:
            return asyncio.ensure_future(self._hold_up(write, gate))
        return self.real.write(write)

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        return await self.real.fetch(statement, params)

    def subscribe(self, callback: Subscriber) -> None:
        self.real.subscribe(callback)

    async def aclose(self) -> None:
        if not self._together:
            await self.real.aclose()

    async def _lose(self, write: Write[T]) -> T:
        await self.real.write(write)
        raise OutcomeUnknown("the reply was lost")

    async def _hold_up(self, write: Write[T], gate: asyncio.Event) -> T:
        """Commit at once, answer late."""
        reply = await self.real.write(write)
        await gate.wait()
        return reply


class Place:
    """Where a test's database is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._file: Database | None = None

    async def connect(self, *, together: bool = False) -> FaultyDatabase:
        """Open the database, as a process does; `together` with others of the same test."""
        if not together or not self.url.startswith("sqlite:"):
            return FaultyDatabase(await open_database(self.url))
        # One process holds the file, so that all have the same connection.
        self._file = self._file or await open_database(self.url)
        return FaultyDatabase(self._file, together=True)

    async def aclose(self) -> None:
        if self._file is not None:
            await self._file.aclose()


@dataclass
class Run:
    """A write that runs one statement."""

    statement: Statement
    params: Mapping[str, Any]
    subject = None

    async def apply(self, tx: Transaction) -> int:
        return await tx.execute(self.statement, self.params)


@dataclass
class Registered:
    """The write of an operation that starts with this callback and ends at once."""

    token: str
    registration: Registration
    now: int
    terms: Terms
    subject = None

    async def apply(self, tx: Transaction) -> list[Delivery]:
        await outbox.register(tx, self.token, self.registration, self.now)
        return await outbox.freeze(
            tx, self.token, lambda: ([("Nexus-Operation-State", "succeeded")], BODY), now=self.now,
            terms=self.terms,
        )  # fmt: skip


@dataclass
class FixedTerms:
    """Terms that do not depend on anything."""

    owner: str = "me"
    claim: bool = True
    age_ms: int = 72 * HOUR_MS

    def accepts(self, destination: str) -> bool:
        return self.claim

    def max_age_ms(self, destination: str) -> int:
        return self.age_ms


@dataclass
class FrozenBy:
    """What the write that ended an operation asks when it is tried again."""

    token: str
    owner: str
    now: int
    subject = None

    async def apply(self, tx: Transaction) -> list[Delivery]:
        return await outbox.frozen_by(tx, self.token, self.owner, self.now)


class FakeClock:
    """A clock that stands still unless it is told to go on.

    Args:
        wrong_by_ms: How far ahead of the true time the machine's clock is.
    """

    def __init__(self, wrong_by_ms: int = 0) -> None:
        self.seconds = 1000.0
        self.wrong_by_ms = wrong_by_ms
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> float:
        return self.seconds

    def now_ms(self) -> int:
        return 1_000_000_000_000 + self.wrong_by_ms

    async def sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        self._sleepers.append((self.seconds + seconds, over))
        await over.wait()

    @property
    def sleeping(self) -> int:
        """How many tasks wait for time to pass."""
        return sum(not over.is_set() for _, over in self._sleepers)

    def freeze(self, seconds: float) -> None:
        """Let time pass and nobody notice, as while the process is stopped."""
        self.seconds += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass and wake who waited for it."""
        self.seconds += seconds
        for at, over in self._sleepers:
            if at <= self.seconds:
                over.set()


@dataclass
class Office:
    """One delivery service with its lease, as one process has them."""

    place: Place
    together: bool = False
    sender: Sender = field(default_factory=Sender)
    time: int = 1_000_000_000_000
    time_stands_still: bool = True  # otherwise it is the database's
    settings: DeliverySettings = field(default_factory=DeliverySettings)
    around: Any = None
    sign: Sign | None = None
    clock: FakeClock | None = None
    lease_seconds: float = 15.0
    notices: bool = False  # whether the operator has a webhook for dead letters
    seconds: list[float] = field(default_factory=list)
    database: FaultyDatabase = field(init=False)
    lease: Lease = field(init=False)
    service: DeliveryService = field(init=False)

    async def open(self) -> None:
        self.database = await self.place.connect(together=self.together)
        self.lease = Lease(self.database, seconds=self.lease_seconds, clock=self.clock)
        await self.lease.open()
        settings = self.settings
        if self.notices:
            notice = Notice("http://operator.example/dead", "http://operator.example:80", HOUR_MS)
            settings = replace(settings, notice=notice)
        self.service = DeliveryService(
            self.database, self.sender, settings, lease=self.lease,
            sign=self.sign, observe=self.seconds.append, around_attempt=self.around,
            now=self.now if self.time_stands_still else None, draw=lambda: 0.5,
        )  # fmt: skip
        await self.service.open()

    def now(self) -> int:
        return self.time if self.time_stands_still else self.lease.now_ms()

    async def not_looked_for(self) -> Sequence[Row]:
        """Return the destinations whose due deliveries nobody will look for in time; a bug."""
        return await self.database.real.fetch(_NOT_LOOKED_FOR, {"now": self.now()})

    async def standing(self, host: str) -> Standing:
        """Return what the database knows of a destination."""
        rows = await self.database.fetch(STANDING_OF, {"name": f"http://{host}:80"})
        return read_standing(rows[0]) if rows else Standing(f"http://{host}:80")

    async def close(self, drain_seconds: float = 5.0) -> None:
        await self.service.close(drain_seconds)
        await self.lease.close()
        await self.database.aclose()

    async def kill(self) -> None:
        """End as SIGKILL does: no more is written, and its lease is left to run out."""
        self.database.refuses = lambda _: True
        tasks = [*self.service._tasks, *self.service._own_tasks, *self.lease._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def expire(self) -> None:
        """Have the database's clock pass the end of this process's lease."""
        await self.database.real.write(Run(_EXPIRE, {"row_id": self.lease.id}))

    def ending(
        self, token: str, host: str = "caller.example", *, claim: bool | None = None
    ) -> Registered:
        """The end of an operation; `claim`: whatever the service would say."""
        registration = Registration(f"http://{host}/cb", f"http://{host}:80", {"Token": "t"})
        terms: Terms = self.service
        if claim is not None:
            terms = FixedTerms(self.lease.id, claim=claim)
        return Registered(token, registration, self.now(), terms)

    async def end(self, token: str, host: str = "caller.example", *, submit: bool = True) -> None:
        deliveries = await self.database.write(self.ending(token, host))
        if submit:
            self.service.submit(deliveries)

    async def leave(self, token: str, host: str = "caller.example") -> None:
        """End an operation and leave its completion to whoever has room."""
        await self.database.write(self.ending(token, host, claim=False))

    async def row(self, token: str, slot: int = 0) -> tuple[str, int, int | None]:
        """Return state, attempt and next_at."""
        state, attempt, next_at, _, _ = await self._row(token, slot)
        return state, attempt, next_at

    async def id_of(self, token: str) -> int:
        """Return the id of an operation's first callback."""
        return int((await self._row(token, 0))[3])

    async def reason(self, token: str) -> str | None:
        """Return why the last attempt failed, or why the delivery was given up."""
        reason: str | None = (await self._row(token, 0))[4]
        return reason

    async def _row(self, token: str, slot: int) -> Row:
        return (await self.database.fetch(_ROW, {"token_is": token, "slot_is": slot}))[0]

    async def is_(
        self, token: str, state: str, attempt: int | None = None, *, slot: int = 0
    ) -> int | None:
        """Wait for a state; return when the next attempt is."""

        async def ask() -> tuple[int | None] | None:
            now, tried, next_at = await self.row(token, slot)
            return (next_at,) if now == state and attempt in {None, tried} else None

        return (await eventually(ask))[0]
