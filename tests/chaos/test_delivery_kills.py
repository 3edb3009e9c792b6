"""Delivery killed with SIGKILL at every boundary of claim, send and record."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from callbacks import outbox
from callbacks.database import Transaction, open_database
from callbacks.delivery_queries import ATTEMPTS_OF, CALLBACKS_OF
from gateway.schema import migrate
from tests.callbacks.office import FixedTerms
from tests.chaos.postman import (
    AFTER_CLAIM,
    AFTER_RECORD,
    AFTER_SEND,
    BEFORE_CLAIM,
    BEFORE_RECORD,
    BEFORE_SEND,
)
from tests.support.callback_receiver import Answer, CallbackReceiver

pytestmark = pytest.mark.anyio

BODY = b'{"done":true}'
NOW = 1_000_000_000_000


class Ended:
    """The end of an operation whose completion waits for somebody to send it."""

    subject = None

    def __init__(self, token: str, url: str) -> None:
        self._token = token
        self._registration = outbox.Registration(url, "/".join(url.split("/")[:3]), {})

    async def apply(self, tx: Transaction) -> None:
        await outbox.register_first(tx, self._token, self._registration, NOW)
        await outbox.freeze(
            tx,
            self._token,
            lambda: ([("Nexus-Operation-State", "succeeded")], BODY),
            now=NOW,
            # Far ahead: the service goes by the true time.
            terms=FixedTerms(claim=False, age_ms=10**13),
        )


@pytest.fixture
async def receiver() -> AsyncIterator[CallbackReceiver]:
    async with CallbackReceiver() as receiver:
        yield receiver


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    url = f"sqlite:///{tmp_path / 'x.db'}"
    migrate(url)
    return url


async def start(database_url: str, moment: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos.postman", database_url, moment
    )


async def end(database_url: str, receiver: CallbackReceiver) -> None:
    database = await open_database(database_url)
    await database.write(Ended("t1", receiver.url()))
    await database.aclose()


async def outcome(database_url: str) -> tuple[str, int, list[tuple[int, int | None]]]:
    """Return the state, how many attempts were begun, and the status of those that are kept."""
    database = await open_database(database_url)
    ((_, _, _, state, attempts, *_),) = await database.fetch(CALLBACKS_OF, {"token": "t1"})
    log = await database.fetch(ATTEMPTS_OF, {"token": "t1"})
    await database.aclose()
    return state, attempts, [(row[1], row[4]) for row in log]


@pytest.mark.parametrize(
    ("moment", "attempts", "posts"),
    [
        (BEFORE_CLAIM, 1, 1),
        (AFTER_CLAIM, 2, 1),
        (BEFORE_SEND, 2, 1),
        (AFTER_SEND, 2, 2),
        (BEFORE_RECORD, 2, 2),
        (AFTER_RECORD, 1, 1),
    ],
)
async def test_what_arrives(
    database_url: str, receiver: CallbackReceiver, moment: str, attempts: int, posts: int
) -> None:
    await end(database_url, receiver)
    assert await (await start(database_url, moment)).wait() == -signal.SIGKILL
    assert await (await start(database_url)).wait() == 0
    state, begun, _ = await outcome(database_url)
    assert (state, begun) == ("delivered", attempts)
    assert [request.body for request in receiver.requests] == [BODY] * posts


async def test_killed_while_the_receiver_thinks(
    database_url: str, receiver: CallbackReceiver
) -> None:
    never = asyncio.Event()
    receiver.will_answer(Answer(hold=never))
    await end(database_url, receiver)
    process = await start(database_url)
    await receiver.received(1)
    process.kill()
    await process.wait()
    # The second copy is refused by a receiver that has taken the first one.
    receiver.will_answer(404)
    assert await (await start(database_url)).wait() == 0
    assert (await outcome(database_url))[:2] == ("delivered", 2)
    never.set()


@pytest.mark.parametrize(
    ("moment", "status", "log"),
    [
        (BEFORE_RECORD, 503, [(2, 200)]),
        (AFTER_RECORD, 503, [(1, 503), (2, 200)]),
        (BEFORE_RECORD, 400, [(2, 200)]),  # nobody knows of the refusal
        (AFTER_RECORD, 400, [(1, 400)]),
    ],
)
async def test_what_is_refused(
    database_url: str,
    receiver: CallbackReceiver,
    moment: str,
    status: int,
    log: list[tuple[int, int]],
) -> None:
    receiver.will_answer(status)
    await end(database_url, receiver)
    assert await (await start(database_url, moment)).wait() == -signal.SIGKILL
    assert await (await start(database_url)).wait() == 0
    state, _, kept = await outcome(database_url)
    assert state == ("failed" if len(log) == 1 and log[0][1] == 400 else "delivered")
    assert kept == log
