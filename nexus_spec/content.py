"""Inputs and results: Python values to and from a body with its `Content-*` headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import pydantic_core
from nexusrpc import Content, Serializer
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from nexus_spec.errors import InvalidWireValue, UnencodableValue
from nexus_spec.headers import CONTENT_ENCODING, CONTENT_TYPE
from nexus_spec.json_text import parse_json
from nexus_spec.media_types import MediaType, parse_media_type

__all__ = ["JSON", "OCTETS", "Codec", "MediaType", "PayloadSerializer", "parse_media_type"]

JSON = "application/json"
OCTETS = "application/octet-stream"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

_SHOWN_ERRORS = 10
# Rendering the errors of a million list items would take a gigabyte: beyond this, only a count.
_RENDERED_ERRORS = 1000


class Codec(Protocol):
    """A further media type for `PayloadSerializer`, tried before the built-in ones."""

    @property
    def media_type(self) -> str:
        """The media type this codec reads, for example `application/x-protobuf`.

        Parameters narrow it: `application/json; format=protobuf` leaves other JSON alone.
        """
        ...

    def encode(self, value: Any) -> Content | None:
        """Write a value, or return None where it is not one of this codec's kind."""
        ...

    def decode(self, content: Content, media_type: MediaType, as_type: Any) -> Any:
        """Read a body of this codec's media type.

        Raises:
            InvalidWireValue: the body is malformed or does not fit `as_type`.
        """
        ...


class PayloadSerializer(Serializer):
    """Turn values into bodies and back, in the forms that every Nexus caller knows.

    `None` is no body and no type; `bytes` are `application/octet-stream`; everything else is
    `application/json` by pydantic, with no parameters, since some readers compare the whole text.
    Values of a pydantic model are written under their aliases, as they are read.

    Spec: SPEC.md#content-types
    """

    def __init__(self, codecs: Iterable[Codec] = ()) -> None:
        """Make a serializer; of the codecs that match, the first one does the work."""
        self._codecs = [(parse_media_type(codec.media_type), codec) for codec in codecs]

    def serialize(self, value: Any) -> Content:
        """Write a value as a body with its headers, names in lower case.

        Infinity and not-a-number, which JSON lacks, become null.

        Raises:
            UnencodableValue: the value has no JSON form.
        """
        for _, codec in self._codecs:
            if (content := codec.encode(value)) is not None:
                return content
        if value is None:
            return Content(headers={}, data=b"")
        if isinstance(value, bytes | bytearray | memoryview):
            return Content(headers={CONTENT_TYPE: OCTETS}, data=bytes(value))
        try:
            data = pydantic_core.to_json(value, by_alias=True, inf_nan_mode="null")
        except (ValueError, RecursionError) as error:
            raise UnencodableValue(
                f"a value of type {_type_name(type(value))} cannot be written as JSON: {error}"
            ) from error
        return Content(headers={CONTENT_TYPE: JSON}, data=data)

    async def deserialize(self, content: Content, as_type: type[Any] | None = None) -> Any:
        """Do what `decode` does, as the coroutine that `nexusrpc` expects.

        Raises:
            InvalidWireValue: as `decode`.
        """
        return self.decode(content, as_type)

    def check_type(self, as_type: Any) -> None:
        """Check that a type can be read at all; with codecs of one's own they have the say.

        Raises:
            UnencodableValue: it cannot, which would otherwise show with the first value.
        """
        if self._codecs or as_type is None:
            return
        try:
            _adapter(as_type)
        except (PydanticUserError, PydanticSchemaGenerationError, NameError) as error:
            reason = str(error).partition("\n")[0]
            raise UnencodableValue(
                f"values of type {as_type!r} cannot be read: {reason}"
            ) from error

    def decode(self, content: Content, as_type: Any = None) -> Any:
        """Read a body as a value of a type; without a type, or with `Any`, as plain JSON.

        `application/json` is validated by pydantic, whatever parameters it carries, so the JSON
        form of a protobuf message reads like any other.

        Raises:
            InvalidWireValue: the media type is unknown, the body is malformed, or it does not
                fit the type. The message lists `field: problem` lines for the sender.

        Spec: SPEC.md#content-types
        """
        content_type = _header(content.headers, CONTENT_TYPE)
        encoding = _header(content.headers, CONTENT_ENCODING)
        if encoding and encoding.strip().lower() != "identity":
            raise InvalidWireValue(
                f"Content-Encoding {encoding[:20]!r} is not supported: send the body uncompressed"
            )
        if not content_type:
            return self._decode_untyped(content, as_type)
        if content_type == JSON and not self._codecs:
            return _decode_json(content.data, as_type)
        media_type = parse_media_type(content_type)
        for pattern, codec in self._codecs:
            if _matches(media_type, pattern):
                return codec.decode(content, media_type, as_type)
        if media_type.type == JSON:
            charset = media_type.params.get("charset", "utf-8")
            if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
                raise InvalidWireValue(f"charset {charset[:20]!r} is not supported: send UTF-8")
            return _decode_json(content.data, as_type)
        if media_type.type == OCTETS:
            return _decode_octets(content.data, as_type)
        raise _unknown(media_type, [pattern.type for pattern, _ in self._codecs])

    def _decode_untyped(self, content: Content, as_type: Any) -> Any:
        if content.data:
            raise InvalidWireValue(
                f"the body has no Content-Type: send Content-Type: {JSON}, or {OCTETS} for bytes"
            )
        if as_type is None or as_type is Any:
            return None
        try:
            return _adapter(as_type).validate_python(None)
        except ValidationError:
            raise InvalidWireValue(
                f"the body is empty, which means null: expected {_type_name(as_type)} "
                f"with Content-Type: {JSON}"
            ) from None


def _decode_json(data: bytes, as_type: Any) -> Any:
    if not data:
        raise InvalidWireValue(
            f"the body is empty, which is not valid {JSON}: "
            "send a JSON document, or no Content-Type for null"
        )
    if as_type is None or as_type is Any:
        return parse_json(data, "the body")
    try:
        return _adapter(as_type).validate_json(data)
    except ValidationError as error:
        raise InvalidWireValue(_explain(error, as_type)) from None
    except RecursionError:
        raise InvalidWireValue("the body is nested too deeply") from None


def _decode_octets(data: bytes, as_type: Any) -> Any:
    if as_type is None or as_type is Any or as_type is bytes:
        return data
    try:
        # Strict: otherwise any bytes that happen to be UTF-8 would pass for a str.
        return _adapter(as_type).validate_python(data, strict=True)
    except ValidationError:
        raise InvalidWireValue(
            f"the body is bytes ({OCTETS}): expected {_type_name(as_type)} "
            f"with Content-Type: {JSON}"
        ) from None


def _adapter(as_type: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(as_type)
    except TypeError:
        # Only Annotated with unhashable metadata cannot be a key of the cache.
        return TypeAdapter(as_type)


@lru_cache(maxsize=1024)
def _cached_adapter(as_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(as_type)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is None:
        # Users may build a Content with names in any case.
        for key in headers:
            if key.lower() == name:
                return headers[key]
    return value


def _matches(media_type: MediaType, pattern: MediaType) -> bool:
    return media_type.type == pattern.type and pattern.params.items() <= media_type.params.items()


def _unknown(media_type: MediaType, others: list[str]) -> InvalidWireValue:
    if media_type.type in _FORMS:
        return InvalidWireValue(
            f"the body is labelled {media_type.type}, as curl -d does by default: "
            f"send Content-Type: {JSON} (curl: -H 'Content-Type: {JSON}', or --json)"
        )
    return InvalidWireValue(
        f"unknown Content-Type {media_type.type[:60]!r}: "
        f"expected {', '.join(dict.fromkeys([JSON, OCTETS, *others]))}"
    )


def _explain(error: ValidationError, as_type: Any) -> str:
    count = error.error_count()
    heading = f"the body does not fit {_type_name(as_type)}"
    if count > _RENDERED_ERRORS:
        return f"{heading}: {count} errors"
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return f"the body is not valid JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}"
    lines = [
        f"{_location(problem['loc'])}: {problem['msg'][:200]}"
        for problem in problems[:_SHOWN_ERRORS]
    ]
    if count > _SHOWN_ERRORS:
        lines.append(f"and {count - _SHOWN_ERRORS} more")
    return "\n".join([f"{heading}:", *lines])


def _location(location: tuple[int | str, ...]) -> str:
    # Keys come from the sender: none may fill the message.
    return ".".join(str(part)[:40] for part in location[:20]) or "body"


def _type_name(as_type: Any) -> str:
    return as_type.__name__ if isinstance(as_type, type) else str(as_type)[:80]
