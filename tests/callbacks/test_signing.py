import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from callbacks.database import Database, DatabaseClosed, open_database
from callbacks.outbox import Delivery
from callbacks.signing import Signer
from callbacks.signing_keys import CALLBACKS, SigningKeys
from clients.signatures import SignatureInvalid, verify_webhook
from gateway.signing_keys import StoredSigningKeys
from nexus_spec import Headers

pytestmark = pytest.mark.anyio

NOW_MS = 1_767_268_800_999
NOW = datetime.fromtimestamp(1_767_268_800, UTC)
HERE, ELSEWHERE = "https://a.example:443", "https://b.example:443"

DELIVERY = Delivery(
    id=7,
    token="0atoken",
    slot=0,
    url="https://a.example/cb",
    destination=HERE,
    headers=[
        ("Token", "t0k"),
        ("NEXUS-Operation-State", "succeeded"),
        ("Nexus-Operation-Token", "0atoken"),
    ],
    body=b'{"paid":true}',
    attempt=1,
    retries=0,
    outcome_unknown=False,
    deadline_at=NOW_MS + 1000,
    owner="me",
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await open_database(database_url)
    yield opened
    await opened.aclose()


@pytest.fixture
def signer(database: Database) -> Signer:
    return Signer(SigningKeys(database, CALLBACKS))


async def secrets_of(url: str, destination: str) -> list[bytes]:
    """Return what the command `signing-keys secret` shows."""
    return list(await asyncio.to_thread(lambda: StoredSigningKeys(url).secrets_of(destination)))


async def arrived(signer: Signer, delivery: Delivery, now_ms: int = NOW_MS) -> Headers:
    """Return all headers of an attempt, as its receiver sees them."""
    return Headers.from_pairs([*delivery.headers, *await signer.headers(delivery, now_ms)])


async def test_a_receiver_verifies_what_is_delivered(signer: Signer, database_url: str) -> None:
    headers = await arrived(signer, DELIVERY)
    assert headers["webhook-id"] == "0atoken_7"
    assert headers["webhook-timestamp"] == "1767268800"
    secrets = await secrets_of(database_url, HERE)
    verify_webhook(headers, DELIVERY.body, secrets, now=NOW)
    changed = Headers({**headers, "nexus-operation-state": "failed"})
    with pytest.raises(SignatureInvalid, match="state"):
        verify_webhook(changed, DELIVERY.body, secrets, now=NOW)


async def test_the_standard_s_library_verifies_it_too(signer: Signer, database_url: str) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    headers = dict(await arrived(signer, DELIVERY, now_ms))
    [secret] = await secrets_of(database_url, HERE)
    assert Webhook(secret).verify(DELIVERY.body, headers) == {"paid": True}
    [other] = await secrets_of(database_url, ELSEWHERE)
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(DELIVERY.body, headers)


async def test_a_receiver_cannot_speak_to_another(signer: Signer, database_url: str) -> None:
    here, elsewhere = [await secrets_of(database_url, name) for name in (HERE, ELSEWHERE)]
    there = dataclasses.replace(DELIVERY, destination=ELSEWHERE)
    for delivery, secrets in ((DELIVERY, elsewhere), (there, here)):
        with pytest.raises(SignatureInvalid, match="no trusted secret"):
            verify_webhook(await arrived(signer, delivery), DELIVERY.body, secrets, now=NOW)


async def test_attempts_share_an_id_and_have_times_of_their_own(
    signer: Signer, database_url: str
) -> None:
    again = dataclasses.replace(DELIVERY, attempt=2)
    first, second = await arrived(signer, DELIVERY), await arrived(signer, again, NOW_MS + 60_000)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) == int(first["webhook-timestamp"]) + 60
    secrets = await secrets_of(database_url, HERE)
    later = NOW + timedelta(seconds=60)
    verify_webhook(second, DELIVERY.body, secrets, now=later, tolerance=timedelta(0))
    other = dataclasses.replace(DELIVERY, id=8)
    assert (await arrived(signer, other))["webhook-id"] == "0atoken_8"


async def test_a_message_without_a_state_is_signed_without_it(
    signer: Signer, database_url: str
) -> None:
    message = dataclasses.replace(DELIVERY, headers=[("Token", "t0k")])
    headers = await arrived(signer, message)
    assert "webhook-nexus-signature" not in headers
    verify_webhook(headers, message.body, await secrets_of(database_url, HERE), now=NOW)


async def test_while_keys_are_rotated_old_and_new_secrets_verify(
    database: Database, database_url: str
) -> None:
    seconds = 0.0
    signer = Signer(SigningKeys(database, CALLBACKS, monotonic=lambda: seconds))
    await arrived(signer, DELIVERY)
    [old] = await secrets_of(database_url, HERE)
    await asyncio.to_thread(lambda: StoredSigningKeys(database_url).rotate(timedelta(seconds=30)))
    new, same = await secrets_of(database_url, HERE)
    assert same == old
    seconds = 61.0  # from now on this process knows
    headers = await arrived(signer, DELIVERY)
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (old, new):
        verify_webhook(headers, DELIVERY.body, [secret], now=NOW)
    only_new = Headers({**headers, "webhook-signature": headers["webhook-signature"].split()[0]})
    verify_webhook(only_new, DELIVERY.body, [new], now=NOW)
    seconds += 31.0
    headers = await arrived(signer, DELIVERY)
    verify_webhook(headers, DELIVERY.body, [new], now=NOW)
    with pytest.raises(SignatureInvalid, match="no trusted secret"):
        verify_webhook(headers, DELIVERY.body, [old], now=NOW)


async def test_without_a_key_nothing_is_signed(signer: Signer, database: Database) -> None:
    await database.aclose()
    with pytest.raises(DatabaseClosed):
        await signer.headers(DELIVERY, NOW_MS)


async def test_a_notice_is_signed_with_a_secret_that_no_completion_is(
    signer: Signer, database_url: str
) -> None:
    """A caller may have completions sent there, and chooses what is in them."""
    notice = dataclasses.replace(DELIVERY, slot=-1, headers=[("Content-Type", "application/json")])
    headers = await arrived(signer, notice)
    secrets = await secrets_of(database_url, HERE)
    with pytest.raises(SignatureInvalid):
        verify_webhook(headers, notice.body, secrets, now=NOW)
    own = await asyncio.to_thread(
        lambda: StoredSigningKeys(database_url).secrets_of(HERE, notices=True)
    )
    verify_webhook(headers, notice.body, own, now=NOW)
    again = dataclasses.replace(notice, deadline_at=notice.deadline_at + 1)  # given up once more
    assert (await arrived(signer, again))["webhook-id"] != headers["webhook-id"]
