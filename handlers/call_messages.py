"""How a call to another endpoint ended, as a message to the operation that made it."""

import base64
import json

from nexusrpc import Content, Link

from nexus_spec import (
    Completion,
    InvalidWireValue,
    OperationState,
    failure_from_json,
    failure_to_json,
)
from nexus_spec.json_text import json_text

CALL_MESSAGE = "nexus.call"
"""The name of these messages; the journal's key of the call tells them apart."""


def completion_to_message(completion: Completion) -> bytes:
    """Return what is stored of a completion: state, token, links and the result or failure."""
    message: dict[str, object] = {"state": completion.state.value}
    if completion.token:
        message["token"] = completion.token
    if completion.links:
        message["links"] = [[link.url, link.type] for link in completion.links]
    if completion.content is not None:
        message["headers"] = dict(completion.content.headers)
        message["body"] = base64.b64encode(completion.content.data).decode()
    if completion.failure is not None:
        message["failure"] = failure_to_json(completion.failure)
    return json_text(message).encode()


def completion_from_message(payload: bytes) -> Completion:
    """Return the completion that `completion_to_message` wrote.

    Raises:
        InvalidWireValue: It is something else.
    """
    try:
        message = json.loads(payload)
        links = tuple(Link(url=url, type=kind) for url, kind in message.get("links", ()))
        failure = message.get("failure")
        body = message.get("body")
        return Completion(
            state=OperationState(message["state"]),
            token=message.get("token", ""),
            start_time=None,
            close_time=None,
            links=links,
            content=None
            if body is None
            else Content(headers=message["headers"], data=base64.b64decode(body, validate=True)),
            failure=None if failure is None else failure_from_json(failure),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidWireValue(f"the message is no completion of a call: {error}") from error
