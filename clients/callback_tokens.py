"""The tokens that a caller's callbacks bring back: which call a completion is for, signed.

A token is `v1.KEY_ID.CALL.MAC`: the call as base64url of JSON, and an HMAC-SHA256 over all that is
before it. It holds no secret and does not expire: the operation that it is about does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from nexus_spec import NexusError

__all__ = [
    "CallbackTokenInvalid",
    "OutgoingCall",
    "SigningKey",
    "key_id_of",
    "new_signing_key",
    "sign_call",
    "verify_call",
]

_VERSION = "v1"
_SECRET_BYTES = 32
_MOST_CHARACTERS = 4096


class CallbackTokenInvalid(NexusError):
    """The token was not made here, or was changed on the way; it is not told which."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret and the name by which tokens refer to it."""

    id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OutgoingCall:
    """One call that an operation makes.

    Attributes:
        operation_token: The operation that calls.
        key: The call's key in that operation's journal, such as `book#1`.
        endpoint: The endpoint that is called, by its name in the settings.
    """

    operation_token: str
    key: str
    endpoint: str


def new_signing_key() -> SigningKey:
    """Return a new key of 256 random bits."""
    return SigningKey(f"sk_{secrets.token_hex(6)}", secrets.token_bytes(_SECRET_BYTES))


def sign_call(call: OutgoingCall, key: SigningKey) -> str:
    """Return the token of a call; it fits into a header."""
    about = json.dumps([call.operation_token, call.key, call.endpoint], separators=(",", ":"))
    signed = f"{_VERSION}.{key.id}.{_to_text(about.encode())}"
    return f"{signed}.{_to_text(_mac(signed, key.secret))}"


def key_id_of(token: str) -> str:
    """Return the id of the key that a token says it was signed with.

    Raises:
        CallbackTokenInvalid: It is no token at all.
    """
    return _parts(token)[1]


def verify_call(token: str, keys: Mapping[str, SigningKey]) -> OutgoingCall:
    """Return the call that a token was made for.

    Args:
        token: As it came back.
        keys: The keys that are trusted, retired ones included, by id.

    Raises:
        CallbackTokenInvalid: No trusted key has signed it.
    """
    version, key_id, about, mac = _parts(token)
    key = keys.get(key_id)
    if key is None:
        raise CallbackTokenInvalid("the callback token is not valid")
    signed = f"{version}.{key_id}.{about}"
    # The given text, not its bytes: base64 has several texts for the same bytes.
    if not hmac.compare_digest(mac.encode(), _to_text(_mac(signed, key.secret)).encode()):
        raise CallbackTokenInvalid("the callback token is not valid")
    operation_token, journal_key, endpoint = json.loads(_to_bytes(about))
    return OutgoingCall(operation_token, journal_key, endpoint)


def _parts(token: str) -> tuple[str, str, str, str]:
    parts = token.split(".") if len(token) <= _MOST_CHARACTERS and token.isascii() else []
    if len(parts) != 4 or parts[0] != _VERSION or not all(parts):
        raise CallbackTokenInvalid("the callback token is not valid")
    version, key_id, about, mac = parts
    return version, key_id, about, mac


def _mac(text: str, secret: bytes) -> bytes:
    return hmac.digest(secret, text.encode("ascii"), hashlib.sha256)


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _to_bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise CallbackTokenInvalid("the callback token is not valid") from error
