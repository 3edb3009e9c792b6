"""The `Content-Type` header: a media type and its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from nexus_spec.errors import InvalidWireValue

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TYPE = re.compile(rf"[ \t]*({_NAME}/{_NAME})[ \t]*")
# RFC 9110 section 5.6.6 allows empty parameters: "application/json;" is legal.
_PARAMETER = re.compile(rf";[ \t]*(?:({_NAME})=(?:({_NAME})|\"((?:[^\"\\]|\\.)*)\")[ \t]*)?")
_QUOTED_PAIR = re.compile(r"\\(.)")
_CACHED_CHARACTERS = 256


@dataclass(frozen=True)
class MediaType:
    """A media type in lower case, such as `application/json`, and its parameters.

    Parameter names are in lower case, values as sent, without their quotes.
    """

    type: str
    params: Mapping[str, str] = field(default_factory=dict)


def parse_media_type(value: str) -> MediaType:
    """Read the value of a `Content-Type` header; of parameters of one name the first counts.

    Raises:
        InvalidWireValue: the value is no media type with parameters.

    Spec: SPEC.md#content-types
    """
    return _parse_cached(value) if len(value) <= _CACHED_CHARACTERS else _parse(value)


def _parse(value: str) -> MediaType:
    match = _TYPE.match(value)
    if match is None:
        raise _malformed(value)
    media_type, params, position = match[1].lower(), dict[str, str](), match.end()
    while position < len(value):
        match = _PARAMETER.match(value, position)
        if match is None:
            raise _malformed(value)
        name, bare, quoted = match.groups()
        if name is not None:
            text = bare if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
            params.setdefault(name.lower(), text)
        position = match.end()
    return MediaType(media_type, MappingProxyType(params))


_parse_cached = lru_cache(maxsize=256)(_parse)


def _malformed(value: str) -> InvalidWireValue:
    return InvalidWireValue(
        f"invalid Content-Type {value[:40]!r}: expected for example application/json"
    )
