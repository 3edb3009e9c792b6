"""The caller's own headers: merged, and kept apart from those that the protocol defines."""

from __future__ import annotations

from collections.abc import Mapping

from nexus_spec import is_header_name, is_header_value

__all__ = ["merge_user_headers"]

_RESERVED = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "operation-timeout",
        "request-timeout",
        "te",
        "temporal-nexus-failure-support",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_RESERVED_PREFIXES = ("content-", "nexus-", "proxy-")


def merge_user_headers(*layers: Mapping[str, str] | None) -> dict[str, str]:
    """Merge headers, names in lower case; of a name that occurs twice the later layer counts.

    Raises:
        ValueError: a name or value that HTTP cannot carry, or a header that the client writes
            itself and takes as an argument. Values are not part of the message: they may be keys.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for given, value in (layer or {}).items():
            name = given.lower()
            if not is_header_name(given) or not is_header_value(value):
                raise ValueError(f"header {given[:100]!r} has a name or value that HTTP forbids")
            if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
                raise ValueError(
                    f"header {name!r} is written by the client itself: use its arguments"
                )
            merged[name] = value
    return merged
