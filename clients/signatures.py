r"""Signatures on delivered messages, by which a receiver tells the gateway from anybody else.

They follow Standard Webhooks (https://www.standardwebhooks.com), the symmetric flavour `v1`: a
secret shared with the receiver, and an HMAC-SHA256 over id, timestamp and body. Any of its
libraries verifies them. It leaves all other headers unsigned, and one of them says how an operation
ended; so a completion has a second signature, an extension, in `webhook-nexus-signature`:

```
webhook-signature        {id}.{timestamp}.{body}
webhook-nexus-signature  {id}\n{timestamp}\n{state}\n{token}\n{body}
```

No header holds a newline and no id a full stop. So each text can be read in one way only, and
neither is ever the other one of some other message: with full stops in both, the second signature
of a completion would be a good first one of the body `{state}.{token}.{body}`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from nexus_spec import Headers, NexusError
from nexus_spec.headers import OPERATION_STATE, OPERATION_TOKEN

__all__ = [
    "NEXUS_SIGNATURE",
    "TOLERANCE",
    "WEBHOOK_ID",
    "WEBHOOK_SIGNATURE",
    "WEBHOOK_TIMESTAMP",
    "SignatureInvalid",
    "destination_secret",
    "parse_secret",
    "secret_text",
    "verify_webhook",
    "webhook_headers",
]

WEBHOOK_ID: Final = "webhook-id"
WEBHOOK_TIMESTAMP: Final = "webhook-timestamp"
WEBHOOK_SIGNATURE: Final = "webhook-signature"
NEXUS_SIGNATURE: Final = "webhook-nexus-signature"

TOLERANCE: Final = timedelta(minutes=5)
"""How far a message's timestamp may be from the receiver's clock, in either direction."""

_VERSION = "v1,"
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
_SECRET_BYTES = range(24, 64 + 1)  # as Standard Webhooks has it
# No sign, no fraction, no other digits; a datetime holds all of these.
_TIMESTAMP = re.compile(r"[0-9]{1,11}")
# Another label is another secret for every destination: all receivers would have to be told.
_DERIVATION_LABEL = b"nexus-rpc-gateway callback secret v1:"


class SignatureInvalid(NexusError):
    """A message is not known to be from its sender; the text says what is wrong, and no secret."""


def secret_text(secret: bytes) -> str:
    """Return a secret as people copy it: `whsec_` and base64."""
    return _SECRET_PREFIX + base64.b64encode(secret).decode()


def parse_secret(text: str) -> bytes:
    """Return the secret that a text of the form `whsec_BASE64` stands for.

    Raises:
        ValueError: It has another form, or is not 24 to 64 bytes long; the text is not repeated.
    """
    if not text.startswith(_SECRET_PREFIX):
        raise ValueError("a webhook secret begins with whsec_")
    try:
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        # Not chained: the cause could show the secret.
        raise ValueError("a webhook secret is whsec_ followed by base64") from None
    if len(secret) not in _SECRET_BYTES:
        raise ValueError(f"a webhook secret is 24 to 64 bytes long, not {len(secret)}")
    return secret


def destination_secret(master: bytes, destination: str, *, notices: bool = False) -> bytes:
    """Return the secret of one destination, 32 bytes, derived from the gateway's own.

    Who knows it learns nothing of the others, so no receiver can forge what another one gets. It is
    HKDF-Expand of RFC 5869 with SHA-256, a fixed label and the destination as `info`.

    Args:
        master: A key of random bytes that only the gateway has.
        destination: `scheme://host:port`.
        notices: The secret of the gateway's notices to its operator, which is another one: callers
            may have completions sent to the same destination, and choose what is in them.
    """
    # No destination has a space in it.
    name = f"notices {destination}" if notices else destination
    return hmac.digest(master, _DERIVATION_LABEL + name.encode() + b"\x01", "sha256")


def webhook_headers(
    message_id: str,
    timestamp_seconds: int,
    body: bytes,
    secrets: Sequence[bytes],
    *,
    state: str | None,
    token: str | None,
) -> list[tuple[str, str]]:
    """Return the headers that sign one attempt to deliver a message.

    Args:
        message_id: The same at every attempt; without a full stop.
        timestamp_seconds: When this attempt is made, in seconds since 1970, UTC.
        body: The bytes as they are sent.
        secrets: Each makes a signature, in this order: the newest comes first.
        state: What the message says in `Nexus-Operation-State`; None where it is no completion.
        token: What it says in `Nexus-Operation-Token`, if anything.

    Raises:
        ValueError: There is no secret, the id holds a full stop, or a text fits into no header.
    """
    if not secrets:
        raise ValueError("without a secret there is no signature")
    if "." in message_id:
        raise ValueError("the id of a signed message holds no full stop")
    timestamp = str(timestamp_seconds)
    headers = [
        (WEBHOOK_ID, message_id),
        (WEBHOOK_TIMESTAMP, timestamp),
        (WEBHOOK_SIGNATURE, _signatures(secrets, _signed(message_id, timestamp, body))),
    ]
    if state is not None:
        signed = _signed_completion(message_id, timestamp, state, token, body)
        headers.append((NEXUS_SIGNATURE, _signatures(secrets, signed)))
    return headers


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    *,
    now: datetime,
    tolerance: timedelta = TOLERANCE,
) -> None:
    """Accept a message that one of the secrets has signed a short time ago.

    A message with `Nexus-Operation-State` must have that signed, too. Its times and links and its
    content type are not signed. A message may come more than once: its `webhook-id` tells, and so
    does an operation's token.

    Args:
        headers: As they came; names in any case.
        body: The bytes as they came, before anything was decoded.
        secrets: Those that are trusted; one of them suffices.
        now: The time, aware.
        tolerance: How far the message's timestamp may be from it, in either direction.

    Raises:
        SignatureInvalid: A header is missing or malformed, the message is too old or too new, or
            no trusted secret has signed it; signatures of other versions than `v1` do not count.
    """
    given = headers if isinstance(headers, Headers) else Headers(headers)
    message_id = _required(given, WEBHOOK_ID)
    timestamp = _required(given, WEBHOOK_TIMESTAMP)
    if "." in message_id:
        raise SignatureInvalid(f"the header {WEBHOOK_ID} holds a full stop")
    _check_age(timestamp, now, tolerance)
    state = given.get(OPERATION_STATE)
    token = given.get(OPERATION_TOKEN)
    try:
        signed = _signed(message_id, timestamp, body)
        _check(_required(given, WEBHOOK_SIGNATURE), secrets, signed, "this message")
        if state is not None:
            signed = _signed_completion(message_id, timestamp, state, token, body)
            what = "this state and token of the operation"
            _check(_required(given, NEXUS_SIGNATURE), secrets, signed, what)
    except UnicodeEncodeError:
        raise SignatureInvalid("a signed header holds characters that no header has") from None


def _required(headers: Headers, name: str) -> str:
    value = headers.get(name)
    if not value:
        raise SignatureInvalid(f"the header {name} is missing")
    return value


def _check_age(timestamp: str, now: datetime, tolerance: timedelta) -> None:
    if _TIMESTAMP.fullmatch(timestamp) is None:
        raise SignatureInvalid(f"the header {WEBHOOK_TIMESTAMP} is no number of seconds since 1970")
    age = now - datetime.fromtimestamp(int(timestamp), UTC)
    if abs(age) > tolerance:
        off = f"{abs(age).total_seconds():.0f} s {'old' if age > timedelta(0) else 'ahead'}"
        raise SignatureInvalid(
            f"the message is {off}, at most {tolerance.total_seconds():g} s are accepted; "
            "is the clock right?"
        )


def _check(given: str, secrets: Sequence[bytes], signed: bytes, what: str) -> None:
    candidates = [each.encode("latin-1") for each in given.split() if each.startswith(_VERSION)]
    for secret in secrets:
        expected = _signature(secret, signed).encode()
        # The given text, not its bytes: base64 has several texts for the same bytes.
        if any(hmac.compare_digest(candidate, expected) for candidate in candidates):
            return
    raise SignatureInvalid(f"no trusted secret has signed {what}")


def _signed(message_id: str, timestamp: str, body: bytes) -> bytes:
    return _bytes(f"{message_id}.{timestamp}.") + body


def _signed_completion(
    message_id: str, timestamp: str, state: str, token: str | None, body: bytes
) -> bytes:
    return _bytes(f"{message_id}\n{timestamp}\n{state}\n{token or ''}\n") + body


def _bytes(headers: str) -> bytes:
    # One character is one byte, as in every header; texts of ours are ASCII.
    return headers.encode("latin-1")


def _signatures(secrets: Sequence[bytes], signed: bytes) -> str:
    return " ".join([_signature(secret, signed) for secret in secrets])


def _signature(secret: bytes, signed: bytes) -> str:
    return _VERSION + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
