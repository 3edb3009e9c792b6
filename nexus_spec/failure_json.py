"""The Failure object: its fields, and its JSON, read and written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nexusrpc
import pydantic_core

from nexus_spec.errors import InvalidWireValue
from nexus_spec.json_text import parse_json

HANDLER_ERROR = "nexus.HandlerError"
OPERATION_ERROR = "nexus.OperationError"
TEMPORAL_FAILURE = "temporal.api.failure.v1.Failure"

UNWRAP_ERROR = "unwrap-error"
"""Metadata key of an OperationError: "true" means that the cause is what to report."""

MAX_CAUSES = 100
"""Causes below one Failure; a longer chain is refused when read and cut when written."""

_KNOWN_KEYS = frozenset({"message", "stackTrace", "metadata", "details", "cause"})
# The keys of `details` without which a typed Failure is unreadable.
_PROTOCOL_DETAILS = ("type", "retryableOverride", "state")


@dataclass
class Failure(nexusrpc.Failure):
    """A Failure as read from the wire.

    `details` may be any JSON value. `unknown` holds keys that the specification does not define;
    they are kept when the Failure is forwarded.

    Spec: SPEC.md#failure
    """

    details: Any = None
    unknown: Mapping[str, Any] = field(default_factory=dict)


def parse_failure(data: bytes) -> Failure:
    """Read a Failure from a body.

    Raises:
        InvalidWireValue: the bytes are not a JSON object, a field has the wrong type, or causes
            are nested too deeply.

    Spec: SPEC.md#failure
    """
    return failure_from_json(parse_json(data, "the Failure"))


def failure_from_json(obj: object) -> Failure:
    """Read a Failure from a decoded JSON value; null counts as absent, like a missing message.

    Raises:
        InvalidWireValue: as `parse_failure`.

    Spec: SPEC.md#failure
    """
    chain: list[Failure] = []
    while True:
        failure, cause = _read_one(obj, "cause" if chain else "Failure")
        chain.append(failure)
        if cause is None:
            break
        if len(chain) > MAX_CAUSES:
            raise InvalidWireValue(f"invalid Failure: more than {MAX_CAUSES} nested causes")
        obj = cause
    for outer, inner in itertools.pairwise(chain):
        outer.cause = inner
    return chain[0]


def failure_to_json(failure: nexusrpc.Failure) -> dict[str, Any]:
    """Return the JSON object of a Failure, unknown keys included, absent fields left out."""
    document = _write_one(failure)
    outer, cause, depth = document, failure.cause, 0
    # A chain that someone tied into a loop ends here too.
    while cause is not None and depth < MAX_CAUSES:
        outer["cause"] = inner = _write_one(cause)
        outer, cause, depth = inner, cause.cause, depth + 1
    return document


def failure_to_bytes(failure: nexusrpc.Failure) -> bytes:
    """Write a Failure as a body; never fails.

    Where details or other free values have no JSON form, they are left out and the rest is sent:
    an error that cannot be told is worse than one told in part.
    """
    document = failure_to_json(failure)
    try:
        return pydantic_core.to_json(document, inf_nan_mode="null")
    except (ValueError, RecursionError):
        return pydantic_core.to_json(_legible(document))


def metadata_type(failure: nexusrpc.Failure) -> str | None:
    """Return `metadata.type`, which tells the form of a Failure; None for a bare one."""
    return (failure.metadata or {}).get("type")


def _read_one(obj: object, what: str) -> tuple[Failure, object]:
    """Read one level; return it with the value of its cause, still to be read."""
    if not isinstance(obj, dict):
        raise InvalidWireValue(f"invalid Failure: expected the {what} to be a JSON object")
    message, stack_trace = obj.get("message"), obj.get("stackTrace")
    metadata = obj.get("metadata")
    if not isinstance(message, str | None):
        raise InvalidWireValue("invalid Failure: message is not a string")
    if not isinstance(stack_trace, str | None):
        raise InvalidWireValue("invalid Failure: stackTrace is not a string")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and all(isinstance(key, str) and isinstance(text, str) for key, text in metadata.items())
    ):
        raise InvalidWireValue("invalid Failure: metadata is not an object of strings")
    failure = Failure(
        message=message or "",
        stack_trace=stack_trace,
        metadata=metadata,
        details=obj.get("details"),
        unknown={key: value for key, value in obj.items() if key not in _KNOWN_KEYS},
    )
    return failure, obj.get("cause")


def _write_one(failure: nexusrpc.Failure) -> dict[str, Any]:
    # `details` of nexusrpc's class is a mapping or None, of ours anything.
    details: Any = failure.details
    document: dict[str, Any] = dict(failure.unknown) if isinstance(failure, Failure) else {}
    document["message"] = failure.message
    if failure.stack_trace is not None:
        document["stackTrace"] = failure.stack_trace
    if failure.metadata is not None:
        document["metadata"] = dict(failure.metadata)
    if details is not None:
        document["details"] = details
    return document


def _legible(document: dict[str, Any]) -> dict[str, Any]:
    """Return what surely has a JSON form: texts, and the details that the protocol requires."""
    result: dict[str, Any] = {}
    level, written = document, result
    while True:
        written["message"] = _text(level["message"])
        if "stackTrace" in level:
            written["stackTrace"] = _text(level["stackTrace"])
        if "metadata" in level:
            written["metadata"] = {_text(k): _text(v) for k, v in level["metadata"].items()}
        if isinstance(details := level.get("details"), Mapping):
            written["details"] = {
                key: _text(value) if isinstance(value, str) else value
                for key in _PROTOCOL_DETAILS
                if isinstance(value := details.get(key), str | bool)
            }
        if (cause := level.get("cause")) is None:
            return result
        written["cause"] = written = {}
        level = cause


def _text(value: object) -> str:
    # Lone surrogates come from file names and from careless decoding.
    return str(value).encode("utf-8", "replace").decode()
