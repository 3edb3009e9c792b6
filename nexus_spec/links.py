"""`Nexus-Link`: references to resources of the other side, encoded like HTTP's `Link`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from nexusrpc import Link

from nexus_spec.errors import InvalidWireValue

_TYPE = re.compile(r"[A-Za-z0-9_./]+")
# What a URL may consist of once escaped; the delimiters of the header are among it.
_URL = re.compile(r"[!#-;=?-~]+")
_PARAMETER = re.compile(
    r"[ \t]*;[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*=[ \t]*"
    r"(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",;<>]*))[ \t]*"
)
_QUOTED_PAIR = re.compile(r"\\(.)")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986 characters that stay as they are. A comma and a semicolon are allowed in a URL, but
# some readers split the header at each: escaped, all readers agree.
_SAFE = "%:/?#[]@!$&'()*+=~"
_EXPECTED = 'expected <URL>; type="TYPE", where TYPE holds letters, digits, "_", "." and "/"'


def parse_links(values: Iterable[str]) -> list[Link]:
    """Read all links from the values of all `Nexus-Link` headers of a message.

    A comma inside `<>` belongs to the URL. Parameters other than `type` are ignored; of several
    types the first counts. Neither number nor size is checked: see `limits`.

    Raises:
        InvalidWireValue: a value is empty or malformed, or a link has no valid type.

    Spec: SPEC.md#nexus-link
    """
    links: list[Link] = []
    for value in values:
        start: int | None = 0
        while start is not None:
            link, start = _parse_link(value, start)
            links.append(link)
    return links


def format_link(link: Link) -> str:
    """Write one link as a header value, escaping in its URL whatever a reader could stumble over.

    Escapes already present are kept, so a link that was read is written the same.

    Raises:
        InvalidWireValue: the URL is empty or not valid Unicode, or the type has characters other
            than letters, digits, `_`, `.` and `/`.

    Spec: SPEC.md#nexus-link
    """
    if _TYPE.fullmatch(link.type) is None:
        raise InvalidWireValue(f"invalid link type {link.type[:40]!r}: {_EXPECTED}")
    if not link.url:
        raise InvalidWireValue("a link has an empty URL")
    try:
        url = quote(_BROKEN_ESCAPE.sub("%25", link.url), safe=_SAFE)
    except UnicodeEncodeError:
        raise InvalidWireValue("a link's URL is not valid Unicode text") from None
    return f'<{url}>; type="{link.type}"'


def _parse_link(value: str, start: int) -> tuple[Link, int | None]:
    """Read one link; return it with the position of the next one, None behind the last."""
    opening = _skip_space(value, start)
    closing = value.find(">", opening)
    if not value.startswith("<", opening) or closing < 0:
        raise _malformed(value)
    url = value[opening + 1 : closing]
    if _URL.fullmatch(url) is None:
        raise InvalidWireValue(
            "invalid link: its URL is empty or holds characters that must be percent-encoded"
        )
    position, type_ = closing + 1, None
    while match := _PARAMETER.match(value, position):
        name, quoted, bare = match.groups()
        if name == "type" and type_ is None:
            type_ = bare if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        position = match.end()
    position = _skip_space(value, position)
    if position < len(value) and value[position] != ",":
        raise _malformed(value)
    if type_ is None or _TYPE.fullmatch(type_) is None:
        raise InvalidWireValue(f"invalid link: its type is missing or malformed; {_EXPECTED}")
    return Link(url=url, type=type_), position + 1 if position < len(value) else None


def _skip_space(value: str, position: int) -> int:
    while position < len(value) and value[position] in " \t":
        position += 1
    return position


def _malformed(value: str) -> InvalidWireValue:
    return InvalidWireValue(f"invalid link {value[:40]!r}: {_EXPECTED}")
