import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from callbacks.database import Database, Statement, Transaction, open_database, table_of
from callbacks.records import SigningKeyRecord
from callbacks.signing_keys import CALLS, SigningKeys
from clients.callback_tokens import OutgoingCall, key_id_of, sign_call, verify_call
from gateway.schema import migrate

pytestmark = pytest.mark.anyio

CALL = OutgoingCall("token", "book#1", "shipping")
_keys = table_of(SigningKeyRecord)
_RETIRE = Statement(sa.update(_keys).values(retired_at=1))
_COUNT = Statement(sa.select(sa.func.count()).select_from(_keys))


class Retire:
    """Retire every key."""

    subject = None

    async def apply(self, tx: Transaction) -> None:
        await tx.execute(_RETIRE, {})


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
    other = SigningKeys(database, "webhooks")
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
