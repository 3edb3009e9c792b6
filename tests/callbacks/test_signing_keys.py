import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from callbacks.database import (
    Database,
    DatabaseUnavailable,
    Row,
    Statement,
    Transaction,
    open_database,
    table_of,
)
from callbacks.records import SigningKeyRecord
from callbacks.signing_keys import CALLBACKS, CALLS, SigningKeys
from clients.callback_tokens import OutgoingCall, key_id_of, sign_call, verify_call
from gateway.schema import migrate
from gateway.signing_keys import Rotation, StoredSigningKeys
from tests.callbacks.office import FaultyDatabase
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

CALL = OutgoingCall("token", "book#1", "shipping")
_keys = table_of(SigningKeyRecord)
_RETIRE = Statement(sa.update(_keys).values(retired_at=sa.bindparam("at")))
_COUNT = Statement(sa.select(sa.func.count()).select_from(_keys))


class Retire:
    """Retire every key, by default a long time ago."""

    subject = None

    def __init__(self, at: int = 1) -> None:
        self.at = at

    async def apply(self, tx: Transaction) -> None:
        await tx.execute(_RETIRE, {"at": self.at})


class Reads(FaultyDatabase):
    """A database that counts what is read, and does not answer where it is told so."""

    def __init__(self, real: Database) -> None:
        super().__init__(real)
        self.reads = 0
        self.away = False
        self.hangs = False

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        self.reads += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise DatabaseUnavailable("away")
        return await self.real.fetch(statement, params)


class Time:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(params=["sqlite", "postgresql"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    url = f"sqlite:///{tmp_path}/keys.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    migrate(url)
    return url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await open_database(url)
    yield opened
    await opened.aclose()


async def count(database: Database) -> int:
    [(number,)] = await database.fetch(_COUNT, {})
    return int(number)


async def test_a_key_is_made_at_first_need_and_kept(database: Database) -> None:
    keys = SigningKeys(database, CALLS)
    assert await count(database) == 0
    key = await keys.signing()
    assert await keys.signing() == key
    assert await SigningKeys(database, CALLS).signing() == key
    assert await count(database) == 1


async def test_processes_that_need_one_at_once_share_one(database: Database) -> None:
    replicas = [SigningKeys(database, CALLS) for _ in range(5)]
    signing = await asyncio.gather(*(keys.signing() for keys in replicas))
    assert len(set(signing)) == 1


async def test_a_purpose_has_keys_of_its_own(database: Database) -> None:
    key = await SigningKeys(database, CALLS).signing()
    other = SigningKeys(database, CALLBACKS)
    assert (await other.signing()).id != key.id
    assert key.id not in await other.trusted(key.id)


async def test_a_retired_key_is_trusted_and_signs_no_more(database: Database) -> None:
    now = 0.0
    keys = SigningKeys(database, CALLS, monotonic=lambda: now)
    retired = await keys.signing()
    await database.write(Retire())
    assert await keys.signing() == retired  # for a minute
    now = 61.0
    assert await keys.signing() != retired
    token = sign_call(CALL, retired)
    assert verify_call(token, await keys.trusted(key_id_of(token))) == CALL


async def test_a_key_that_another_process_made_is_found(database: Database) -> None:
    here, there = SigningKeys(database, CALLS), SigningKeys(database, CALLS)
    assert await here.trusted("sk_none") == {}
    token = sign_call(CALL, await there.signing())
    assert verify_call(token, await here.trusted(key_id_of(token))) == CALL


async def rotate(url: str, overlap: timedelta) -> Rotation:
    """Rotate the keys for callbacks, as the command does in another process."""
    return await asyncio.to_thread(lambda: StoredSigningKeys(url).rotate(overlap))


async def ids(keys: SigningKeys) -> list[str]:
    return [key.id for key in await keys.all_signing()]


async def test_while_keys_are_rotated_both_sign_and_then_the_new_one_alone(
    url: str, database: Database
) -> None:
    time = Time()
    keys = SigningKeys(database, CALLBACKS, monotonic=time)
    [first] = await ids(keys)
    rotation = await rotate(url, timedelta(seconds=30))
    assert list(rotation.retired) == [first]
    assert await ids(keys) == [first]  # for a minute
    time.seconds = 61.0
    assert await ids(keys) == [rotation.key_id, first]
    assert (await keys.signing()).id == rotation.key_id
    # The overlap ends without another look at the database.
    time.seconds += 31.0
    assert await ids(keys) == [rotation.key_id]
    assert first in await keys.trusted(first)
    assert await count(database) == 2


async def test_a_key_that_is_retired_later_still_signs(database: Database) -> None:
    time = Time()
    keys = SigningKeys(database, CALLS, monotonic=time)
    key = await keys.signing()
    await database.write(Retire(at=10**15))
    time.seconds = 61.0
    assert await keys.signing() == key
    assert await count(database) == 1


async def test_where_all_keys_are_retired_a_new_one_is_made(database: Database) -> None:
    first = await SigningKeys(database, CALLBACKS).signing()
    await database.write(Retire())
    [key] = await SigningKeys(database, CALLBACKS).all_signing()
    assert key != first


async def test_the_database_is_asked_once_a_minute(database: Database) -> None:
    time, counting = Time(), Reads(database)
    keys = SigningKeys(counting, CALLBACKS, monotonic=time)
    await keys.all_signing()
    made = counting.reads
    for _ in range(100):
        await keys.all_signing()
        time.seconds += 0.599
    assert counting.reads == made
    time.seconds += 0.2
    await asyncio.gather(*(keys.all_signing() for _ in range(100)))
    assert counting.reads == made + 1


async def test_known_keys_go_on_while_the_database_is_away(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    time, flaky = Time(), Reads(database)
    keys = SigningKeys(flaky, CALLBACKS, monotonic=time)
    known = await keys.all_signing()
    flaky.away = True
    made = flaky.reads
    with caplog.at_level(logging.WARNING, "callbacks.signing_keys"):
        for _ in range(100):  # 20 minutes
            time.seconds += 12.0
            assert await keys.all_signing() == known
        assert flaky.reads > made + 50
        assert len(caplog.records) == 1
        assert "away" in caplog.records[0].__dict__["error"]
        # It is back, and goes away again: that is told anew.
        flaky.away = False
        time.seconds += 12.0
        await keys.all_signing()
        flaky.away = True
        time.seconds += 61.0
        assert await keys.all_signing() == known
        assert len(caplog.records) == 2


async def test_a_database_that_is_away_is_not_asked_by_every_delivery(database: Database) -> None:
    time, flaky = Time(), Reads(database)
    keys = SigningKeys(flaky, CALLBACKS, monotonic=time)
    await keys.all_signing()
    flaky.away, made = True, flaky.reads
    time.seconds = 61.0
    for _ in range(100):
        await keys.all_signing()
    assert flaky.reads == made + 1


async def test_nobody_waits_for_a_database_that_does_not_answer(database: Database) -> None:
    time, frozen = Time(), Reads(database)
    keys = SigningKeys(frozen, CALLBACKS, monotonic=time)
    known = await keys.all_signing()
    frozen.hangs = True
    time.seconds = 61.0
    asking = asyncio.ensure_future(keys.all_signing())
    await asyncio.sleep(0)
    for _ in range(10):
        assert await keys.all_signing() == known
    assert not asking.done()
    # The one that asks gives up soon.
    async with asyncio.timeout(20):
        assert await asking == known


async def test_a_server_that_stands_still_is_read_again_when_it_goes_on(
    postgres: PostgresServer, postgres_url: str
) -> None:
    time = Time()
    database = await open_database(postgres_url)
    keys = SigningKeys(database, CALLBACKS, monotonic=time)
    [known] = await ids(keys)
    rotation = await rotate(postgres_url, timedelta(hours=1))
    postgres.freeze()
    try:
        time.seconds = 61.0
        async with asyncio.timeout(20):
            assert await ids(keys) == [known]
    finally:
        postgres.thaw()
    time.seconds += 11.0
    # Where the machine is busy the first look may again take too long.
    async with asyncio.timeout(20):
        while await ids(keys) == [known]:
            time.seconds += 11.0
    assert await ids(keys) == [rotation.key_id, known]
    await database.aclose()


async def test_without_any_key_the_error_is_told(database: Database) -> None:
    flaky = Reads(database)
    flaky.away = True
    keys = SigningKeys(flaky, CALLBACKS)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await keys.all_signing()
    assert await count(database) == 0
    flaky.away = False
    assert len(await keys.all_signing()) == 1


async def test_an_end_that_was_known_comes_while_the_database_is_away(
    url: str, database: Database
) -> None:
    time, flaky = Time(), Reads(database)
    keys = SigningKeys(flaky, CALLBACKS, monotonic=time)
    [first] = await ids(keys)
    rotation = await rotate(url, timedelta(seconds=90))
    time.seconds = 61.0
    assert await ids(keys) == [rotation.key_id, first]
    flaky.away = True
    time.seconds = 140.0
    assert await ids(keys) == [rotation.key_id, first]
    time.seconds = 152.0
    assert await ids(keys) == [rotation.key_id]
