"""What the operators' API reads out of requests and writes into answers."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.asgi import Answer
from gateway.error_responses import bad_request
from nexus_spec import InvalidWireValue, parse_rfc3339
from nexus_spec.json_text import parse_json

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def json_answer(document: object, status: int = 200) -> Answer:
    """Return a document as an answer."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Answer(
        status, [("Content-Type", "application/json")], body.encode("utf-8", "surrogatepass")
    )


def shown_moment(ms: int | None) -> str | None:
    """Write a time in milliseconds since 1970 as operators read it."""
    if ms is None:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_moment(text: str, name: str) -> int:
    """Return a time by RFC 3339 in milliseconds since 1970.

    Raises:
        HandlerError: BAD_REQUEST; it is none.
    """
    try:
        return (parse_rfc3339(text) - _EPOCH) // timedelta(milliseconds=1)
    except InvalidWireValue as error:
        raise bad_request(f"{name}: {error}") from error


def read_whole_number(text: str, name: str, *, most: int) -> int:
    """Return a number from 1 to `most`.

    Raises:
        HandlerError: BAD_REQUEST; it is none.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not (is_number and 1 <= int(text) <= most):
        raise bad_request(f"{name} is a whole number from 1 to {most}")
    return int(text)


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        HandlerError: BAD_REQUEST; it is something else.
        InvalidWireValue: It is not JSON.
    """
    document = parse_json(body, "the body")
    if not isinstance(document, dict):
        raise bad_request("the body is not a JSON object")
    return document
