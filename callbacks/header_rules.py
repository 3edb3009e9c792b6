"""Which headers may be sent to a callback: those a caller gives, and those that are sent."""

from collections.abc import Mapping
from functools import lru_cache

from callbacks.errors import HeaderRefused
from nexus_spec import CALLBACK_HEADER_BYTES, is_header_name, is_header_value
from nexus_spec.headers import LINK

__all__ = ["check_callback_headers", "is_sent", "sent_value"]

# What frames the message or steers the connection belongs to the sender alone: a smuggled
# `content-length: 0` makes the body vanish.
_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# What says how the operation ended, and proves it, belongs to the completion.
_OF_THE_COMPLETION = ("content-", "nexus-operation-", "webhook-")


def check_callback_headers(headers: Mapping[str, str]) -> None:
    """Accept the headers that a caller wants on its callback, prefix already stripped.

    Names are tokens of RFC 9110; values hold no controls, and their bytes (one per character) are
    ASCII or UTF-8. Names and values together take at most 8192 bytes.

    Raises:
        HeaderRefused: one is malformed, or would speak for the sender or the completion, or they
            are too large; the message names the header and never its value.

    Spec: SPEC.md#start-operation
    """
    total_bytes = sum(len(name) + len(value) for name, value in headers.items())
    if total_bytes > CALLBACK_HEADER_BYTES:
        raise HeaderRefused(
            f"callback headers: {total_bytes} bytes, {CALLBACK_HEADER_BYTES} at the most"
        )
    for name, value in headers.items():
        folded = _folded(name)
        if not is_sent(name) or folded == LINK or folded.startswith(_OF_THE_COMPLETION):
            raise HeaderRefused(f"callback header {name}: may not be set by the caller")
        sent_value(name, value)


@lru_cache(maxsize=1024)
def is_sent(name: str) -> bool:
    """Whether a header is sent on a callback; those of the connection are left to the sender.

    Raises:
        HeaderRefused: the name is no token of RFC 9110.
    """
    if not is_header_name(name):
        raise HeaderRefused(f"callback header {name[:50]!r}: not a valid header name")
    folded = _folded(name)
    return folded not in _OF_THE_CONNECTION and not folded.startswith("proxy-")


def sent_value(name: str, value: str) -> str:
    """Return the text that, encoded as UTF-8, gives the value's bytes.

    A value arrives as one character per byte (latin-1) and must leave as the same bytes, from a
    client that writes UTF-8.

    Raises:
        HeaderRefused: it holds a control character, or bytes that are not UTF-8.
    """
    if not is_header_value(value):
        raise HeaderRefused(f"callback header {name}: not a valid header value")
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise HeaderRefused(
            f"callback header {name}: the value is neither ASCII nor UTF-8"
        ) from None


def _folded(name: str) -> str:
    # CGI and WSGI receivers cannot tell `Nexus_Link` from `Nexus-Link`.
    return name.lower().replace("_", "-")
