"""Delivery over a real outbox, with a fake sender and a fake clock."""

import asyncio
import functools
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callbacks import outbox
from callbacks.database import SqliteDatabase, Transaction, Write
from callbacks.delivery import DeliveryService, DeliverySettings, Outcome, Post
from callbacks.outbox import ATTEMPTS_OF, BACKLOG, CALLBACKS_OF, Delivery, Registration
from callbacks.retry_schedule import RetryPolicy
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from gateway.schema import migrate
from nexus_spec import Headers

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
BODY = b'{"done": true}'
Answer = SentResponse | Exception


@functools.cache
def fresh_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        migrate(path)
        return path.read_bytes()


def answer(status: int, **headers: str) -> SentResponse:
    named = Headers.from_pairs((k.replace("_", "-"), v) for k, v in headers.items())
    return SentResponse(status, named, b"\xffexcerpt", "192.0.2.1:80")


@dataclass
class Sender:
    answers: list[Answer] = field(default_factory=list)
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
        got = self.answers.pop(0) if self.answers else answer(200)
        if isinstance(got, Exception):
            raise got
        return got

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Registered:
    """The write of an operation that starts with this callback and ends at once."""

    token: str
    registration: Registration
    now: int
    max_age_ms: int
    claim: bool
    subject = None

    async def apply(self, tx: Transaction) -> list[Delivery]:
        await outbox.register(tx, self.token, self.registration, self.now)
        return await outbox.freeze(
            tx, self.token, ([("Nexus-Operation-State", "succeeded")], BODY),
            now=self.now, max_age_ms=self.max_age_ms, claim=self.claim,
        )  # fmt: skip


class RefusingDatabase(SqliteDatabase):
    refuses: Callable[[Write[Any]], bool] = staticmethod(lambda write: False)

    def write(self, write: Write[Any]) -> asyncio.Future[Any]:
        if self.refuses(write):
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(OSError("disk full"))
            return refused
        return super().write(write)


@dataclass
class Office:
    path: Path
    sender: Sender = field(default_factory=Sender)
    time: int = 1_000_000_000_000
    settings: DeliverySettings = field(default_factory=DeliverySettings)
    around: Any = None
    seconds: list[float] = field(default_factory=list)
    database: RefusingDatabase = field(init=False)
    service: DeliveryService = field(init=False)

    async def open(self) -> None:
        if not self.path.exists():
            self.path.write_bytes(fresh_database())
        self.database = RefusingDatabase(self.path)
        self.service = DeliveryService(
            self.database, self.sender, self.settings, observe=self.seconds.append,
            around_attempt=self.around, now=lambda: self.time, draw=lambda: 0.5,
        )  # fmt: skip
        await self.service.open()

    async def close(self, drain_seconds: float = 5.0) -> None:
        await self.service.close(drain_seconds)
        self.database.close()

    async def end(self, token: str, host: str = "caller.example", *, submit: bool = True) -> None:
        registration = Registration(f"http://{host}/cb", f"http://{host}:80", {"Token": "t"})
        claim = self.service.has_room()
        deliveries = await self.database.write(
            Registered(token, registration, self.time, self.service.max_age_ms, claim)
        )
        if claim and submit:
            self.service.submit(deliveries)
        elif not claim:
            self.service.wake()

    async def row(self, token: str) -> tuple[str, int, int | None]:
        """Return state, attempt and next_at."""
        _, _, _, state, attempt, next_at, _, _ = (
            await self.database.fetch(CALLBACKS_OF, {"token": token})
        )[0]
        return state, attempt, next_at

    async def is_(self, token: str, state: str, attempt: int | None = None) -> int | None:
        """Wait for a state; return when the next attempt is."""
        async with asyncio.timeout(10):
            while True:
                now, tried, next_at = await self.row(token)
                if now == state and (attempt is None or tried == attempt):
                    return next_at
                await asyncio.sleep(0.001)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the service tells nobody
            await asyncio.sleep(0.001)


OpenOffice = Callable[..., Awaitable[Office]]


@pytest.fixture
async def open_office(tmp_path: Path) -> AsyncIterator[OpenOffice]:
    offices: list[Office] = []

    async def open_one(**options: Any) -> Office:
        office = Office(tmp_path / "x.db", **options)
        offices.append(office)
        await office.open()
        return office

    yield open_one
    for office in offices:
        await office.close(0.1)


async def test_delivered_at_once(open_office: OpenOffice) -> None:
    office = await open_office()
    await office.end("t1")
    await office.is_("t1", "delivered", 1)
    assert office.sender.posts == [
        ("http://caller.example/cb", [("Token", "t"), ("Nexus-Operation-State", "succeeded")], BODY)
    ]
    assert await office.database.fetch(ATTEMPTS_OF, {"token": "t1"}) == []
    assert await office.database.fetch(BACKLOG, {}) == []
    assert len(office.seconds) == office.service.stats.delivered == 1


async def test_the_schedule(open_office: OpenOffice) -> None:
    office = await open_office()
    office.sender.answers = [
        answer(500), Unreachable("refused"), answer(429, retry_after="90"), UnknownOutcome("reset"),
        answer(404),
    ]  # fmt: skip
    began = office.time
    await office.end("t1")
    waits = []
    for attempt in range(1, 5):
        next_at = await office.is_("t1", "due", attempt)
        assert next_at is not None
        waits.append(next_at - office.time)
        office.time = next_at
        office.service.wake()
    await office.is_("t1", "delivered", 5)  # a 404 after an unknown outcome
    assert waits == [1000, 2000, 90_000, 8000]
    log = await office.database.fetch(ATTEMPTS_OF, {"token": "t1"})
    assert [row[1] for row in log] == [1, 2, 3, 4, 5]
    assert [row[4] for row in log] == [500, None, 429, None, 404]
    assert log[0][5:] == ("answered 500", "192.0.2.1:80", "\ufffdexcerpt")
    assert log[1][5] == "refused"
    assert log[4][2] - began == sum(waits)
    stats = office.service.stats
    assert (stats.attempts, stats.retried, stats.delivered, stats.failed) == (5, 4, 1, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 501])
async def test_permanent(open_office: OpenOffice, status: int) -> None:
    office = await open_office(sender=Sender([answer(status)]))
    await office.end("t1")
    await office.is_("t1", "failed", 1)
    assert await office.database.fetch(BACKLOG, {}) == [("failed", 1, None)]


async def test_given_up_when_too_old(open_office: OpenOffice) -> None:
    policy = RetryPolicy(max_age=timedelta(seconds=2))
    office = await open_office(
        sender=Sender([answer(500)] * 9), settings=DeliverySettings(retry=policy)
    )
    await office.end("t1")
    next_at = await office.is_("t1", "due", 1)
    assert next_at is not None
    office.time = next_at
    office.service.wake()
    await office.is_("t1", "failed", 2)


async def test_a_retry_comes_by_itself(open_office: OpenOffice) -> None:
    policy = RetryPolicy(first=timedelta(milliseconds=30))
    office = await open_office(
        sender=Sender([answer(500)]), settings=DeliverySettings(retry=policy)
    )
    await office.end("t1")
    await office.is_("t1", "due", 1)
    office.time += 40  # nobody wakes the service
    await office.is_("t1", "delivered", 2)


async def test_what_was_in_flight_is_repeated_after_a_crash(open_office: OpenOffice) -> None:
    office = await open_office()
    await office.end("t1", submit=False)  # the process dies here
    assert await office.row("t1") == ("in_flight", 1, office.time)
    await office.close()
    office.sender.answers = [answer(404)]
    await office.open()
    await office.is_("t1", "delivered", 2)


async def test_a_destination_has_its_cap_and_does_not_hold_others_up(
    open_office: OpenOffice,
) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(per_destination=2, queued_per_destination=2, in_memory=100)
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(10):
        await office.end(f"slow{n}", "slow.example")
    assert office.service.held == 10
    await office.end("fast0", "fast.example")
    await office.is_("fast0", "delivered")
    gate.set()
    for n in range(10):
        await office.is_(f"slow{n}", "delivered", 1)
    assert office.sender.most["slow.example"] == 2
    assert office.service.held == 0


async def test_what_finds_no_room_is_due_and_delivered(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(per_destination=1, queued_per_destination=1, in_memory=3)
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(8):
        await office.end(f"t{n}", "slow.example" if n < 5 else "fast.example")
    assert (await office.row("t7"))[0] == "due"
    gate.set()
    for n in range(8):
        await office.is_(f"t{n}", "delivered", 1)
    assert sorted(post[0] for post in office.sender.posts).count("http://slow.example/cb") == 5


async def test_a_busy_destination_is_not_claimed(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(per_destination=1, queued_per_destination=1, in_memory=50)
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    await office.end("s1", "slow.example")
    await office.end("s2", "slow.example")
    for token, host in (("s3", "slow.example"), ("f1", "fast.example")):
        registration = Registration(f"http://{host}/cb", f"http://{host}:80", {})
        await office.database.write(
            Registered(token, registration, office.time, HOUR_MS, claim=False)
        )
    office.service.wake()
    await office.is_("f1", "delivered")
    assert (await office.row("s3"))[0] == "due"
    gate.set()
    await office.is_("s3", "delivered")


@pytest.mark.parametrize("status", [200, 500, 400])
async def test_a_database_that_refuses_loses_nothing(open_office: OpenOffice, status: int) -> None:
    office = await open_office(sender=Sender([answer(status)]))
    refused: list[str] = []

    def refuses(write: Write[Any]) -> bool:
        name = type(write).__name__
        if name in ("Close", "Retry") and len(refused) < 2:
            refused.append(name)
            return True
        return False

    office.database.refuses = refuses
    await office.end("t1")
    await office.is_("t1", {200: "delivered", 500: "due", 400: "failed"}[status], 1)
    assert len(refused) == 2


async def test_the_poller_survives_a_database_that_refuses(open_office: OpenOffice) -> None:
    office = await open_office(settings=DeliverySettings(in_memory=1))
    refused: list[int] = []

    def refuses(write: Write[Any]) -> bool:
        if type(write).__name__ == "ClaimDue" and not refused:
            refused.append(1)
            return True
        return False

    office.database.refuses = refuses
    office.service.wake()
    await until(lambda: refused)
    registration = Registration("http://h/cb", "http://h:80", {})
    await office.database.write(Registered("t1", registration, office.time, HOUR_MS, claim=False))
    office.service.wake()
    await office.is_("t1", "delivered")


async def test_an_attempt_that_breaks_is_tried_again(open_office: OpenOffice) -> None:
    async def around(delivery: Delivery, post: Post) -> Outcome:
        return await post(delivery, [*delivery.headers, ("traceparent", "x")])

    office = await open_office(sender=Sender([RuntimeError("bug")]), around=around)
    await office.end("t1")
    next_at = await office.is_("t1", "due", 1)
    assert next_at is not None
    await until(lambda: office.service.held == 0)
    office.time = next_at
    office.service.wake()
    await office.is_("t1", "delivered", 2)
    assert office.sender.posts[0][1][-1] == ("traceparent", "x")


async def test_closing_gives_back_what_was_never_begun(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    settings = DeliverySettings(per_destination=1)
    office = await open_office(sender=Sender(gate=gate), settings=settings)
    for n in range(3):
        await office.end(f"t{n}")
    closing = asyncio.ensure_future(office.service.close(0.05))
    await asyncio.sleep(0)
    # A completion that was claimed just before finds the service closing.
    assert not office.service.has_room()
    registration = Registration("http://h/cb", "http://h:80", {})
    late = await office.database.write(
        Registered("late", registration, office.time, HOUR_MS, claim=True)
    )
    office.service.submit(late)
    await closing
    assert office.sender.closed
    states = {token: (await office.row(token))[:2] for token in ("t0", "t1", "t2", "late")}
    assert states == {
        "t0": ("in_flight", 1),  # its outcome is unknown
        "t1": ("due", 0),
        "t2": ("due", 0),
        "late": ("due", 0),
    }
    office.database.close()

    office.sender = Sender([answer(404)] * 4)
    await office.open()
    await office.is_("t0", "delivered", 2)
    for token in ("t1", "t2", "late"):
        await office.is_(token, "failed", 1)  # never sent before: the 404 means what it says


async def test_closing_lets_attempts_end(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await open_office(sender=Sender(gate=gate))
    await office.end("t1")
    closing = asyncio.ensure_future(office.service.close(5))
    await asyncio.sleep(0.01)
    gate.set()
    await closing
    assert (await office.row("t1"))[0] == "delivered"
    office.database.close()
    await office.open()


async def test_a_closed_database_is_left_alone(open_office: OpenOffice) -> None:
    gate = asyncio.Event()
    office = await open_office(sender=Sender(gate=gate))
    for n in range(2):
        await office.end(f"t{n}")
    office.sender.answers = [answer(200), answer(500)]
    office.database.close()
    gate.set()
    await until(lambda: office.service.held == 0)
    office.service.wake()
    await office.service.close(1)
    await office.open()
    for n in range(2):
        await office.is_(f"t{n}", "delivered", 2)
