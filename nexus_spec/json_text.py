"""JSON documents: read so that no input can raise anything unforeseen, written fast."""

from __future__ import annotations

from typing import Any

import pydantic_core

from nexus_spec.errors import InvalidWireValue


def parse_json(data: bytes, what: str) -> Any:
    """Read a JSON document; `what` names it in the message.

    Nesting is limited to about 200 levels, integers to 4300 digits; `NaN` and `Infinity` are
    refused, as are halves of surrogate pairs.

    Raises:
        InvalidWireValue: the bytes are not such a document.
    """
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise InvalidWireValue(f"{what} is not valid JSON: {str(error)[:100]}") from None


def json_text(value: Any) -> str:
    """Write plain values (of text without halves of surrogate pairs) as compact JSON."""
    return pydantic_core.to_json(value).decode()
