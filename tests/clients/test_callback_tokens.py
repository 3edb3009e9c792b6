import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.callback_tokens import (
    CallbackTokenInvalid,
    OutgoingCall,
    SigningKey,
    key_id_of,
    new_signing_key,
    sign_call,
    verify_call,
)
from nexus_spec import is_header_value

KEY = SigningKey("sk_1", b"k" * 32)
OTHER = SigningKey("sk_2", b"o" * 32)
KEYS = {KEY.id: KEY, OTHER.id: OTHER}
CALL = OutgoingCall("0a-token", "1/book#1", "shipping")


def test_a_token_comes_back_as_its_call() -> None:
    token = sign_call(CALL, KEY)
    assert verify_call(token, KEYS) == CALL
    assert key_id_of(token) == KEY.id
    assert sign_call(CALL, KEY) == token


@given(st.builds(OutgoingCall, st.text(), st.text(), st.text()))
def test_any_call_fits_into_a_header(call: OutgoingCall) -> None:
    token = sign_call(call, KEY)
    assert is_header_value(token)
    assert verify_call(token, KEYS) == call


def test_a_key_is_new_each_time_and_keeps_its_secret() -> None:
    one, two = new_signing_key(), new_signing_key()
    assert one.id != two.id
    assert one.secret != two.secret
    assert len(one.secret) == 32
    assert "secret" not in repr(one)


def test_a_token_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(CallbackTokenInvalid):
        verify_call(sign_call(CALL, KEY), {OTHER.id: OTHER})


def test_a_key_does_not_pass_for_another() -> None:
    forged = sign_call(CALL, dataclasses.replace(OTHER, id=KEY.id))
    with pytest.raises(CallbackTokenInvalid):
        verify_call(forged, KEYS)


def test_no_character_may_change() -> None:
    token = sign_call(CALL, KEY)
    for place, character in enumerate(token):
        changed = token[:place] + ("A" if character != "A" else "B") + token[place + 1 :]
        with pytest.raises(CallbackTokenInvalid):
            verify_call(changed, KEYS)


def test_parts_of_two_tokens_do_not_join() -> None:
    version, key_id, _, mac = sign_call(CALL, KEY).split(".")
    about = sign_call(dataclasses.replace(CALL, operation_token="another"), KEY).split(".")[2]
    with pytest.raises(CallbackTokenInvalid):
        verify_call(".".join([version, key_id, about, mac]), KEYS)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "...",
        "v1...",
        "v1.sk_1.e30",
        "v2.sk_1.e30.AAAA",
        "v1.sk_1.e30.AAAA",
        "v1.sk_1.ü.AAAA",
        f"v1.sk_1.e30.{'A' * 5000}",
        base64.b64encode(b"anything").decode(),
    ],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(CallbackTokenInvalid, match="is not valid"):
        verify_call(token, KEYS)


def test_another_text_of_the_same_mac_is_refused() -> None:
    # 32 bytes leave two unused bits in the last of 43 characters.
    head, _, mac = sign_call(CALL, KEY).rpartition(".")
    raw = base64.urlsafe_b64decode(mac + "=")
    twins = [
        mac[:-1] + last
        for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        if base64.urlsafe_b64decode(mac[:-1] + last + "=") == raw and last != mac[-1]
    ]
    assert twins
    for twin in twins:
        with pytest.raises(CallbackTokenInvalid):
            verify_call(f"{head}.{twin}", KEYS)
