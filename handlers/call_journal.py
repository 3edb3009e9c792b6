"""What the journal holds of a call to another endpoint.

| key | what | when |
|---|---|---|
| `book#1.begin` | what is called, until when | before the first request |
| `book#1.start` | the token, as `ref` | the other side goes on by itself |
| `book#1` | the outcome, with `call_ref` | it is known |

What `start_call` made has the token as the `ref` of `book#1` and its outcome under
`book.result#1`. A cancel is `book.cancel#1`. The ref says which call each of them is about.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nexusrpc import OperationError

from handlers.call_messages import CALL_MESSAGE, completion_from_message, completion_to_message
from handlers.errors import CallError, CallTimedOut
from handlers.journal import Kind, part_of
from handlers.outgoing_calls import RemoteOperation
from handlers.store.journals import JournalEntry
from nexus_spec import Completion, OperationState

BEGIN = "begin"
START = "start"

_TIMED_OUT = "TimeoutError"


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call that came to nothing, without any outcome of the operation that was called."""

    type_name: str
    message: str


def timed_out(target: RemoteOperation) -> CallFailed:
    """Return the end of a call that took longer than it may."""
    called = f"{target.service}/{target.operation}"
    return CallFailed(_TIMED_OUT, f"{called} at {target.endpoint!r} did not end in time")


def outcome_ref(key: str) -> str:
    """Return the `ref` of the entry that holds the outcome of a call."""
    return f"{CALL_MESSAGE}/{key}"


def cancel_ref(key: str) -> str:
    """Return the `ref` of the entry that says that a call was to be canceled."""
    return f"nexus.cancel/{key}"


def outcome_columns(key: str, outcome: Completion | CallFailed) -> dict[str, Any]:
    """Return what is recorded of how a call ended."""
    if isinstance(outcome, CallFailed):
        described = {"type": outcome.type_name, "message": outcome.message, "attempts": 1}
        return {"ref": outcome_ref(key), "error": json.dumps(described)}
    error = None
    if outcome.state is not OperationState.SUCCEEDED:
        # For operators; what is raised in the handler comes from the whole outcome.
        described = {
            "type": OperationError.__name__,
            "message": str(outcome.error()),
            "attempts": 1,
        }
        error = json.dumps(described)
    return {
        "ref": outcome_ref(key),
        "output": completion_to_message(outcome),
        "error": error,
    }


def recorded_outcome(entry: JournalEntry) -> Completion | CallError | None:
    """Return how a call ended, by the entry that may say so."""
    if entry.output is not None:
        return completion_from_message(entry.output)
    if entry.error is None:
        return None
    described = json.loads(entry.error)
    kind = CallTimedOut if described["type"] == _TIMED_OUT else CallError
    return kind(described["type"], described["message"], step=entry.key)


def target_to_json(target: RemoteOperation) -> bytes:
    """Return what `BEGIN` holds of the operation that is called."""
    return json.dumps([target.endpoint, target.service, target.operation]).encode()


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call of an operation that has ended without waiting for it."""

    key: str
    target: RemoteOperation
    token: str


def open_calls(entries: Iterable[JournalEntry]) -> list[OpenCall]:
    """Return the calls that may still run elsewhere, and were not asked to cancel."""
    by_key: Mapping[str, JournalEntry] = {
        entry.key: entry for entry in entries if entry.kind == Kind.CALL
    }
    said = {entry.ref for entry in by_key.values()}
    found = []
    for name, entry in by_key.items():
        key = name.removesuffix(f".{BEGIN}")
        if key == name or entry.output is None or {outcome_ref(key), cancel_ref(key)} & said:
            continue
        started = by_key.get(part_of(key, START)) or by_key.get(key)
        if started is not None and started.ref is not None:
            endpoint, service, operation = json.loads(entry.output)
            target = RemoteOperation(endpoint=endpoint, service=service, operation=operation)
            found.append(OpenCall(key, target, started.ref))
    return found
