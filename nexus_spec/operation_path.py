"""Operation addresses: the raw path after the endpoint's prefix, and names, both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from nexus_spec.errors import InvalidWireValue
from nexus_spec.headers import is_header_value
from nexus_spec.limits import NAME_BYTES, TOKEN_BYTES

Action: TypeAlias = Literal["operation", "cancel", "result"]

_SHAPES = "/{service}/{operation}, /{service}/{operation}/cancel or /{service}/{operation}/result"
# A "?" or "#" would mean that more than the path was handed in; the rest cannot occur in a URL.
_PATH = re.compile(rb"(?:/(?:[^\x00-\x20\x7f/?#%]|%[0-9A-Fa-f]{2})*)*")
# Longer paths are parsed each time, so that a caller cannot fill the cache with large keys.
_CACHED_BYTES = 512


@dataclass(frozen=True)
class OperationAddress:
    """Which operation a path names, and what is asked of it.

    `token` is set only by the deprecated form that carries it in the path, and left out of the
    representation: who knows a token may cancel the operation.
    """

    service: str
    operation: str
    action: Action
    token: str | None = field(default=None, repr=False)


def parse_operation_path(raw: bytes) -> OperationAddress:
    """Read the path of a request, as sent (escaped), from the slash after the endpoint's prefix.

    The path is split before its escapes are decoded, so a name may hold `%2F`. Names `.` and `..`
    are not refused here: no service can have them, so they are unknown services.

    Raises:
        InvalidWireValue: another number of segments, an empty one, a broken escape, text that is
            not UTF-8, a name of more than 1000 bytes, or an invalid token.

    Spec: SPEC.md#operation-addressability
    """
    return _parse_cached(raw) if len(raw) <= _CACHED_BYTES else _parse(raw)


def operation_path(service: str, operation: str, action: str = "operation") -> str:
    """Return the escaped path of an operation, to be put behind an endpoint's URL.

    Raises:
        InvalidWireValue: a name that `check_name` refuses.
        ValueError: an action other than `operation`, `cancel` and `result`.

    Spec: SPEC.md#operation-addressability
    """
    check_name(service, "service")
    check_name(operation, "operation")
    path = f"/{quote(service, safe='')}/{quote(operation, safe='')}"
    match action:
        case "operation":
            return path
        case "cancel" | "result":
            return f"{path}/{action}"
        case _:
            raise ValueError(f"unknown action {action!r}: expected operation, cancel or result")


def check_name(name: str, what: str) -> None:
    """Refuse a name that no caller could address; `what` says in the message whose name it is.

    Raises:
        InvalidWireValue: the name is empty, `.` or `..`, is longer than 1000 bytes, or holds NUL
            or half a surrogate pair.

    Spec: SPEC.md#operation-addressability
    """
    if not name:
        raise InvalidWireValue(f"the {what} name is empty")
    if name in (".", ".."):
        # Clients and proxies resolve dot segments, escaped or not, before a request is routed.
        raise InvalidWireValue(f"the {what} name {name!r} vanishes from URLs: choose another")
    if "\0" in name:
        raise InvalidWireValue(f"the {what} name holds a NUL character, which cannot be stored")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidWireValue(f"the {what} name is not valid Unicode text") from None
    if size > NAME_BYTES:
        raise InvalidWireValue(
            f"the {what} name is too long: {size} bytes, at most {NAME_BYTES} are allowed"
        )


def check_token(token: str) -> None:
    """Refuse an operation token that could not travel in a header.

    Raises:
        InvalidWireValue: the token is empty, is longer than 4096 bytes, or holds what a header's
            value may not.

    Spec: SPEC.md#operation-addressability
    """
    if not token:
        raise InvalidWireValue("the operation token is empty")
    if len(token) > TOKEN_BYTES:
        raise InvalidWireValue(
            f"the operation token is too long: {len(token)} characters, "
            f"at most {TOKEN_BYTES} are allowed"
        )
    if not is_header_value(token):
        raise InvalidWireValue("the operation token holds characters not allowed in a header value")


def _parse(raw: bytes) -> OperationAddress:
    if _PATH.fullmatch(raw) is None:
        raise InvalidWireValue(
            "invalid path: expected percent-encoded segments, each % followed by two hex digits"
        )
    segments = raw.split(b"/")[1:]
    if not 2 <= len(segments) <= 4 or b"" in segments:
        raise InvalidWireValue(f"invalid path: expected {_SHAPES}, without empty segments")
    service, operation, *rest = (_unescape(segment) for segment in segments)
    for name, what in ((service, "service"), (operation, "operation")):
        if len(name.encode()) > NAME_BYTES:
            raise InvalidWireValue(f"the {what} name is too long: at most {NAME_BYTES} bytes")
    match rest:
        case []:
            return OperationAddress(service, operation, "operation")
        case ["cancel"]:
            return OperationAddress(service, operation, "cancel")
        case ["result"]:
            return OperationAddress(service, operation, "result")
        case [token, "cancel"]:
            check_token(token)
            return OperationAddress(service, operation, "cancel", token)
        case _:
            raise InvalidWireValue(f"invalid path: expected {_SHAPES}")


_parse_cached = lru_cache(maxsize=1024)(_parse)


def _unescape(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise InvalidWireValue("invalid path: its escapes do not decode to UTF-8 text") from None
