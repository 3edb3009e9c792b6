"""Header names of the protocol, and headers as a case-insensitive mapping."""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from typing import Final, TypeVar, overload

CALLBACK_PREFIX: Final = "nexus-callback-"
CONTENT_ENCODING: Final = "content-encoding"
CONTENT_LENGTH: Final = "content-length"
CONTENT_PREFIX: Final = "content-"
CONTENT_TYPE: Final = "content-type"
FAILURE_SUPPORT: Final = "temporal-nexus-failure-support"
LINK: Final = "nexus-link"
OPERATION_CLOSE_TIME: Final = "nexus-operation-close-time"
OPERATION_START_TIME: Final = "nexus-operation-start-time"
OPERATION_STATE: Final = "nexus-operation-state"
OPERATION_TIMEOUT: Final = "operation-timeout"
OPERATION_TOKEN: Final = "nexus-operation-token"  # noqa: S105 - the name of a header
REQUEST_ID: Final = "nexus-request-id"
REQUEST_RETRYABLE: Final = "nexus-request-retryable"
REQUEST_TIMEOUT: Final = "request-timeout"

# RFC 9110 section 5.6.2 (token) and 5.5 (field-value, with obs-text as latin-1 characters).
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")

_Default = TypeVar("_Default")


class Headers(Mapping[str, str]):
    """Headers of one message: names in any case find the first value of that name.

    Iterating gives each name once, in lower case and in order of appearance. The representation
    shows names only, since values hold callback tokens and keys.
    """

    __slots__ = ("_all", "_first", "_raw")

    _first: dict[str, str]
    _raw: list[tuple[bytes, bytes]] | None
    _all: dict[str, list[str]] | None

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        """Take headers from a mapping; of names that differ only in case the first wins."""
        self._take((headers or {}).items())

    @classmethod
    def from_raw(cls, raw: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Take headers as an ASGI server hands them over; bytes are read as latin-1."""
        self = cls.__new__(cls)
        pairs = raw if isinstance(raw, list) else list(raw)
        first: dict[str, str] = {}
        for name, value in pairs:
            # bytes.lower folds ASCII only, as HTTP does.
            key = name.lower().decode("latin-1")
            if key not in first:
                first[key] = value.decode("latin-1")
        self._first, self._raw, self._all = first, pairs, None
        return self

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Headers:
        """Take headers from pairs of text, as HTTP clients hand them over."""
        self = cls.__new__(cls)
        self._take(pairs)
        return self

    def get_all(self, name: str) -> list[str]:
        """Return every value of a name in order of appearance; empty if there is none."""
        if self._all is None:
            if _fold(name) not in self._first:
                return []
            # Only links need more than the first value: most requests never get here.
            self._all = {}
            for key, value in self._raw or ():
                values = self._all.setdefault(key.lower().decode("latin-1"), [])
                values.append(value.decode("latin-1"))
            self._raw = None
        return list(self._all.get(_fold(name), ()))

    def __getitem__(self, name: str) -> str:
        """Return the first value of a name.

        Raises:
            KeyError: no header has this name.
        """
        return self._first[_fold(name)]

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str | _Default) -> str | _Default: ...
    def get(self, key: str, /, default: object = None) -> object:
        """Return the first value of a name, or the default."""
        # The constants above are in lower case: the first look-up finds nearly all there is.
        value = self._first.get(key)
        return value if value is not None else self._first.get(_fold(key), default)

    def items(self) -> ItemsView[str, str]:
        """Return the names, in lower case, each with its first value."""
        # Mapping's own would look every name up again.
        return self._first.items()

    def __contains__(self, name: object) -> bool:
        """Tell whether any header has this name."""
        return isinstance(name, str) and _fold(name) in self._first

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in lower case."""
        return iter(self._first)

    def __len__(self) -> int:
        """Count the names."""
        return len(self._first)

    def __repr__(self) -> str:
        """Show the names, never the values."""
        return f"Headers({', '.join(self._first)})"

    def _take(self, pairs: Iterable[tuple[str, str]]) -> None:
        first: dict[str, str] = {}
        every: dict[str, list[str]] = {}
        for name, value in pairs:
            key = _fold(name)
            first.setdefault(key, value)
            every.setdefault(key, []).append(value)
        self._first, self._raw, self._all = first, None, every


def is_header_name(text: str) -> bool:
    """Tell whether a text is an HTTP token, which is what a header may be called."""
    return _TOKEN.fullmatch(text) is not None


def is_header_value(text: str) -> bool:
    """Tell whether a text passes HTTP unchanged as a header's value.

    It holds latin-1 characters, no controls but tabs, and no space or tab at either end. The
    empty text is a value.
    """
    return _FIELD_VALUE.fullmatch(text) is not None


def callback_headers(h: Headers) -> dict[str, str]:
    """Return the headers to replay on the callback: lower-case names, their prefix stripped.

    Names and values are as the caller sent them; whether they may be replayed is for the sender
    to decide. A header that is the bare prefix appears under the empty name.

    Spec: SPEC.md#callback-urls
    """
    cut = len(CALLBACK_PREFIX)
    return {name[cut:]: value for name, value in h.items() if name.startswith(CALLBACK_PREFIX)}


def content_headers(h: Headers) -> dict[str, str]:
    """Return the headers that describe the body, names in lower case.

    `Content-Length` is left out: it frames the message, and a retry of the same body may come
    without it (chunked).

    Spec: SPEC.md#content-types
    """
    return {
        name: value
        for name, value in h.items()
        if name.startswith(CONTENT_PREFIX) and name != CONTENT_LENGTH
    }


def _fold(name: str) -> str:
    # str.lower would fold the Kelvin sign to "k": header names are case-insensitive in ASCII only.
    return name.lower() if name.isascii() else name
