"""The state of an operation, and the document that answers its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import pydantic_core

from nexus_spec.errors import InvalidWireValue
from nexus_spec.json_text import parse_json
from nexus_spec.operation_path import check_token


class OperationState(StrEnum):
    """What callers see of an operation's progress.

    Spec: SPEC.md#operationinfo
    """

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True)
class OperationInfo:
    """An operation's token and state; the token stays out of the representation.

    Spec: SPEC.md#operationinfo
    """

    token: str = field(repr=False)
    state: OperationState

    def to_json(self) -> bytes:
        """Write the document that answers 201 to a start."""
        return pydantic_core.to_json({"token": self.token, "state": self.state.value})


def parse_operation_info(data: bytes) -> OperationInfo:
    """Read the document that answers a start; unknown keys are ignored.

    Raises:
        InvalidWireValue: not a JSON object, or its token or state is missing or invalid.

    Spec: SPEC.md#operationinfo
    """
    document = parse_json(data, "the operation info")
    if not isinstance(document, dict):
        raise InvalidWireValue("the operation info is not a JSON object with token and state")
    token, state = document.get("token"), document.get("state")
    if not isinstance(token, str):
        raise InvalidWireValue("the operation info has no token: expected a non-empty string")
    check_token(token)
    return OperationInfo(token=token, state=parse_operation_state(state))


def parse_operation_state(value: object) -> OperationState:
    """Read the name of a state, from JSON or from the `Nexus-Operation-State` header.

    Raises:
        InvalidWireValue: it is none of the four names.
    """
    if isinstance(value, str) and value in _STATES:
        return _STATES[value]
    shown = repr(value[:20]) if isinstance(value, str) else "nothing that is text"
    raise InvalidWireValue(f"invalid operation state: expected {', '.join(_STATES)}, got {shown}")


_STATES = {state.value: state for state in OperationState}
