import base64
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from clients.signatures import (
    TOLERANCE,
    SignatureInvalid,
    destination_secret,
    parse_secret,
    secret_text,
    verify_webhook,
    webhook_headers,
)
from nexus_spec import Headers, NexusError, is_header_value

SECRET, OTHER = b"k" * 32, b"o" * 32
SENT_AT = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
BODY = b'{"paid":true}'

ids = st.text("abcdefghij0123456789_-", min_size=1, max_size=60)
secrets = st.binary(min_size=24, max_size=64)


def signed(
    body: bytes = BODY,
    *,
    id: str = "0atoken_7",
    at: datetime = SENT_AT,
    secrets: tuple[bytes, ...] = (SECRET,),
    state: str | None = "succeeded",
    token: str | None = "0atoken",
) -> dict[str, str]:
    """Return the headers of a signed message, those that say state and token among them."""
    made = webhook_headers(id, int(at.timestamp()), body, secrets, state=state, token=token)
    headers = dict(made)
    if state is not None:
        headers["nexus-operation-state"] = state
    if token is not None:
        headers["nexus-operation-token"] = token
    return headers


def verify(headers: dict[str, str], body: bytes = BODY, *trusted: bytes) -> None:
    verify_webhook(headers, body, trusted or (SECRET,), now=SENT_AT)


def refusal(headers: dict[str, str], body: bytes = BODY, *trusted: bytes) -> str:
    with pytest.raises(SignatureInvalid) as refused:
        verify(headers, body, *trusted)
    return str(refused.value)


def test_the_standard_s_own_example() -> None:
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    sent = webhook_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        [secret],
        state=None,
        token=None,
    )
    assert sent == [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
    ]


def test_the_extension_signs_state_and_token_line_by_line() -> None:
    text = b'0atoken_7\n1767268800\nsucceeded\n0atoken\n{"paid":true}'
    expected = base64.b64encode(hmac.digest(SECRET, text, "sha256")).decode()
    assert signed()["webhook-nexus-signature"] == f"v1,{expected}"


@given(body=st.text(), id=ids, secret=secrets)
def test_the_standard_s_library_verifies_ours(body: str, id: str, secret: bytes) -> None:
    # It asks the machine's clock, and takes text only.
    headers = signed(body.encode(), id=id, at=datetime.now(UTC), secrets=(secret,))
    receiver = Webhook(secret_text(secret))
    receiver.verify(body.encode(), headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        receiver.verify(body + ".", headers, json_parse=False)


@given(body=st.text(), id=ids, secret=secrets, at=st.integers(0, 4_000_000_000))
def test_ours_verifies_the_standard_s_library(body: str, id: str, secret: bytes, at: int) -> None:
    moment = datetime.fromtimestamp(at, UTC)
    headers = {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": Webhook(secret).sign(id, moment, body),
    }
    verify_webhook(headers, body.encode(), [secret], now=moment)


@given(
    body=st.binary(),
    id=ids,
    state=st.sampled_from(["succeeded", "failed", "canceled"]),
    token=st.none() | st.text(max_size=80).filter(is_header_value).filter(bool),
    signing=st.lists(secrets, min_size=1, max_size=3),
)
def test_any_message_is_verified_with_each_of_its_secrets(
    body: bytes, id: str, state: str, token: str | None, signing: list[bytes]
) -> None:
    headers = signed(body, id=id, state=state, token=token, secrets=tuple(signing))
    for secret in signing:
        verify(headers, body, secret)
    assert all(map(is_header_value, headers.values()))


changes: dict[str, Callable[[dict[str, str]], object]] = {
    "id": lambda h: h.update({"webhook-id": "0atoken_8"}),
    "timestamp": lambda h: h.update({"webhook-timestamp": "1767268801"}),
    "timestamp's text": lambda h: h.update({"webhook-timestamp": "01767268800"}),
    "signature": lambda h: h.update({"webhook-signature": "v1," + "A" * 43 + "="}),
    "signature's version": lambda h: h.update({"webhook-signature": "v2" + h["webhook-signature"]}),
    "state": lambda h: h.update({"nexus-operation-state": "failed"}),
    "token": lambda h: h.update({"nexus-operation-token": "0aother"}),
    "token left out": lambda h: h.pop("nexus-operation-token"),
    "nexus signature": lambda h: h.update({"webhook-nexus-signature": h["webhook-signature"]}),
    "nexus signature left out": lambda h: h.pop("webhook-nexus-signature"),
    "state's case": lambda h: h.update({"nexus-operation-state": "Succeeded"}),
}


@pytest.mark.parametrize("change", changes.values(), ids=changes.keys())
def test_nothing_signed_may_change(change: Callable[[dict[str, str]], object]) -> None:
    headers = signed()
    verify(headers)
    change(headers)
    refusal(headers)


@given(place=st.integers(0, len(BODY) - 1), flip=st.integers(1, 255))
def test_no_byte_of_the_body_may_change(place: int, flip: int) -> None:
    changed = bytearray(BODY)
    changed[place] ^= flip
    assert refusal(signed(), bytes(changed)) == "no trusted secret has signed this message"


def test_a_message_without_a_state_needs_no_second_signature() -> None:
    headers = signed(state=None, token=None)
    assert "webhook-nexus-signature" not in headers
    verify(headers)


def test_a_state_that_was_not_signed_counts_for_nothing() -> None:
    headers = signed(state=None, token=None) | {"nexus-operation-state": "succeeded"}
    assert refusal(headers) == "the header webhook-nexus-signature is missing"


def test_the_second_signature_is_no_first_one_of_another_body() -> None:
    headers = signed(at=datetime.now(UTC))
    headers["webhook-signature"] = headers.pop("webhook-nexus-signature")
    for separator in ".\n":
        for moved in (["succeeded", "0atoken"], ["0atoken"], []):
            body = separator.join([*moved, BODY.decode()])
            with pytest.raises(WebhookVerificationError):
                Webhook(SECRET).verify(body, headers, json_parse=False)


def test_an_id_with_a_full_stop_could_be_read_in_two_ways() -> None:
    at = str(int(SENT_AT.timestamp()))
    message = webhook_headers("a", int(at), f"{at}.body".encode(), [SECRET], state=None, token=None)
    shifted = dict(message) | {"webhook-id": f"a.{at}"}
    assert refusal(shifted, b"body") == "the header webhook-id holds a full stop"
    with pytest.raises(ValueError, match="full stop"):
        webhook_headers("a.b", 1, b"", [SECRET], state=None, token=None)


def test_while_keys_are_rotated_either_secret_will_do() -> None:
    headers = signed(at=datetime.now(UTC), secrets=(OTHER, SECRET))
    for secret in (OTHER, SECRET):
        verify_webhook(headers, BODY, [secret], now=datetime.now(UTC))
        assert Webhook(secret).verify(BODY, headers) == {"paid": True}
    newest = signed(secrets=(OTHER,))
    assert headers["webhook-signature"].split()[0] != headers["webhook-signature"].split()[1]
    assert signed(secrets=(OTHER, SECRET))["webhook-signature"].startswith(
        newest["webhook-signature"] + " "
    )
    verify(newest, BODY, SECRET, OTHER)
    assert refusal(newest, BODY, SECRET) == "no trusted secret has signed this message"
    assert refusal(newest, BODY, b"") == "no trusted secret has signed this message"


def test_signatures_of_other_versions_are_passed_over() -> None:
    headers = signed()
    for name in ("webhook-signature", "webhook-nexus-signature"):
        headers[name] = f"v1a,{'A' * 88} v2,x v1, ,  {headers[name]} v1,A v3"
    verify(headers)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed()
    del headers[name]
    assert refusal(headers) == f"the header {name} is missing"
    assert refusal(headers | {name: ""}) == f"the header {name} is missing"


@pytest.mark.parametrize(
    "text",
    [
        "now",
        "-1",
        "+1767268800",
        "1767268800.0",
        "1e9",
        " 1767268800",
        "9" * 12,
        "\uff11\uff17\uff16\uff17",
    ],
)
def test_a_timestamp_is_a_number_of_seconds(text: str) -> None:
    assert "webhook-timestamp" in refusal(signed() | {"webhook-timestamp": text})


def test_a_message_may_be_as_old_as_the_tolerance_says() -> None:
    headers = signed()
    for off in (-TOLERANCE, timedelta(0), TOLERANCE):
        verify_webhook(headers, BODY, [SECRET], now=SENT_AT + off)
    tick = timedelta(microseconds=1)
    for now, said in (
        (SENT_AT + TOLERANCE + tick, "the message is 300 s old, at most 300 s are accepted"),
        (SENT_AT - TOLERANCE - tick, "the message is 300 s ahead, at most 300 s are accepted"),
        (SENT_AT + timedelta(hours=1), "the message is 3600 s old"),
    ):
        with pytest.raises(SignatureInvalid, match=said):
            verify_webhook(headers, BODY, [SECRET], now=now)
    wide = timedelta(hours=1)
    verify_webhook(headers, BODY, [SECRET], now=SENT_AT + wide, tolerance=wide)
    none = timedelta(0)
    with pytest.raises(SignatureInvalid):
        verify_webhook(headers, BODY, [SECRET], now=SENT_AT + tick, tolerance=none)


def test_a_naive_time_is_a_mistake_of_the_receiver() -> None:
    with pytest.raises(TypeError):
        verify_webhook(signed(), BODY, [SECRET], now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_names_count_in_any_case_and_the_first_value_counts() -> None:
    headers = signed()
    verify({name.title(): value for name, value in headers.items()})
    pairs = list(headers.items())
    verify_webhook(Headers.from_pairs([*pairs, ("Webhook-Id", "x")]), BODY, [SECRET], now=SENT_AT)
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    verify_webhook(Headers.from_raw(raw), BODY, [SECRET], now=SENT_AT)


@given(
    headers=st.dictionaries(st.sampled_from(sorted(signed())), st.text(max_size=20)),
    body=st.binary(max_size=20),
)
def test_whatever_comes_is_refused_without_breaking(headers: dict[str, str], body: bytes) -> None:
    refusal(signed() | {"webhook-signature": "v1,x"} | headers, body)


def test_a_message_is_not_sent_without_a_signature() -> None:
    with pytest.raises(ValueError, match="secret"):
        webhook_headers("a", 1, b"", [], state=None, token=None)
    assert issubclass(SignatureInvalid, NexusError)


@given(secrets)
def test_a_secret_is_text_and_back(secret: bytes) -> None:
    text = secret_text(secret)
    assert text.startswith("whsec_")
    assert parse_secret(text) == secret


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with whsec_"),
        (secret_text(SECRET).removeprefix("whsec_"), "begins with whsec_"),
        ("whsk_" + "A" * 44, "begins with whsec_"),
        ("whsec_", "24 to 64 bytes long, not 0"),
        ("whsec_" + "A" * 28, "24 to 64 bytes long, not 21"),
        (secret_text(b"k" * 65), "24 to 64 bytes long, not 65"),
        ("whsec_" + "A" * 43, "followed by base64"),
        ("whsec_" + "-" * 44, "followed by base64"),
        ("whsec_ä" + "A" * 43, "followed by base64"),
        (secret_text(SECRET) + "\n", "followed by base64"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        parse_secret(text)
    assert len(text) < 8 or text not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_destination_s_secret_never_changes() -> None:
    # openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt mode:EXPAND_ONLY \
    #   -kdfopt hexkey:6b6b...6b -kdfopt \
    #   info:"nexus-rpc-gateway callback secret v1:https://a.example:443" HKDF
    secret = destination_secret(SECRET, "https://a.example:443")
    assert secret.hex() == "948c7e349eaf9f8cd66d1999b928f7defb57eb7ed080adbee611d11283272c2e"


def test_destinations_do_not_share_a_secret() -> None:
    names = ["https://a.example:443", "http://a.example:443", "https://a.example:8443"]
    made = {destination_secret(master, name) for name in names for master in (SECRET, OTHER)}
    assert len(made) == 6
    assert {len(secret) for secret in made} == {32}
    headers = signed(secrets=(destination_secret(SECRET, names[0]),))
    refusal(headers, BODY, destination_secret(SECRET, names[1]))
    refusal(headers, BODY, SECRET)
