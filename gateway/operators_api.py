"""The operators' API below `/api/v1`: what runs, how far it is, and the levers."""

import base64
import json
from collections import defaultdict
from typing import Any
from urllib.parse import quote

from nexusrpc import Content, HandlerError, HandlerErrorType
from starlette.requests import Request

from callbacks.delivery_queries import ATTEMPTS_OF, CALLBACKS_OF, read_callback
from gateway.api_values import json_answer, read_object, read_whole_number, shown_moment
from gateway.asgi import Answer, read_body
from gateway.callbacks_api import shown_attempt, shown_callback
from gateway.error_responses import bad_request
from gateway.runtime import Gateway
from handlers.journal import Kind
from handlers.records import State
from handlers.services import DEFAULT_ENDPOINT, HostedOperation
from handlers.store.journals import LOAD_JOURNAL, JournalEntry, read_entry
from handlers.store.operations import LIST, LOAD, StoredOperation, read_operation
from nexus_spec import InvalidWireValue, operation_path
from nexus_spec.json_text import parse_json
from nexus_spec.limits import PAYLOAD_BYTES

_MOST_LISTED = 1000
_AFTER_ALL_TOKENS = "~"


def path_of(hosted: HostedOperation) -> str:
    """Return the path under which an operation is started."""
    prefix = "/services"
    if hosted.endpoint != DEFAULT_ENDPOINT:
        prefix = f"/nexus/endpoints/{quote(hosted.endpoint, safe='')}/services"
    return prefix + operation_path(hosted.service, hosted.operation)


async def list_services(gateway: Gateway, request: Request) -> Answer:
    """List what is served."""
    return json_answer(
        {
            "operations": [
                {
                    "endpoint": hosted.endpoint,
                    "service": hosted.service,
                    "operation": hosted.operation,
                    "kind": hosted.kind.name.lower(),
                    "path": path_of(hosted),
                    "description": hosted.description,
                }
                for hosted in gateway.services
            ]
        }
    )


async def list_operations(gateway: Gateway, request: Request) -> Answer:
    """List operations, the newest first.

    Query: `state`, `service`, `operation`, `limit` (100; 1000 at most), `before` (a token: what
    was started before it).
    """
    query = request.query_params
    state = query.get("state")
    if state is not None and state not in [s.value for s in State]:
        raise bad_request(f"state is one of {', '.join(State)}")
    limit = read_whole_number(query.get("limit", "100"), "limit", most=_MOST_LISTED)
    rows = await gateway.parts.database.fetch(
        LIST,
        {
            "before": query.get("before", _AFTER_ALL_TOKENS),
            "state_is": state,
            "service_is": query.get("service"),
            "operation_is": query.get("operation"),
            "most": limit,
        },
    )
    operations = [read_operation(row) for row in rows]
    return json_answer(
        {
            "operations": [_summary(stored) for stored in operations],
            "next": operations[-1].token if len(operations) == limit else None,
        }
    )


async def show_operation(gateway: Gateway, request: Request) -> Answer:
    """Show one operation: state, input and outcome, steps, deliveries."""
    token = request.path_params["token"]
    database = gateway.parts.database
    rows = await database.fetch(LOAD, {"token": token})
    if not rows:
        raise HandlerError("no such operation", type=HandlerErrorType.NOT_FOUND)
    stored = read_operation(rows[0])
    journal = [read_entry(row) for row in await database.fetch(LOAD_JOURNAL, {"token": token})]
    attempts: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in await database.fetch(ATTEMPTS_OF, {"token": token}):
        attempts[row[0]].append(shown_attempt(row))
    of = (stored.endpoint, stored.service, stored.operation)
    now = gateway.parts.lease.now_ms()
    callbacks = [read_callback(row) for row in await database.fetch(CALLBACKS_OF, {"token": token})]
    deliveries = [
        {**shown_callback(each, of, now), "attempt_log": attempts[each.id]} for each in callbacks
    ]
    return json_answer(
        {
            **_summary(stored),
            "request_id": stored.request_id,
            "handler_token": stored.handler_token,
            "input": _value(stored.input, stored.content_headers),
            "output": None
            if stored.output is None
            else _value(stored.output, stored.output_headers or "{}"),
            "failure": None if stored.failure is None else json.loads(stored.failure),
            "error_detail": stored.error_detail,
            "owner": stored.owner or None,
            "retrying": None if stored.retrying is None else json.loads(stored.retrying),
            "steps": [_step(entry) for entry in journal],
            "deliveries": deliveries,
        }
    )


async def cancel_operation(gateway: Gateway, request: Request) -> Answer:
    """Ask an operation to end, as its caller could."""
    stored = await gateway.parts.engine.cancel_by_operator(request.path_params["token"])
    return json_answer(_summary(stored), status=202)


async def resume_operation(gateway: Gateway, request: Request) -> Answer:
    """Run a paused operation again."""
    stored = await gateway.parts.engine.resume(request.path_params["token"])
    return json_answer(_summary(stored))


async def signal_operation(gateway: Gateway, request: Request) -> Answer:
    """Tell a durable operation what its handler waits for.

    Body: JSON, or nothing for null. Header `Idempotency-Key`: one that is repeated counts once.
    """
    body = await read_body(request.receive, PAYLOAD_BYTES)
    if body:
        parse_json(body, "the body")
    is_new = await gateway.parts.engine.signal(
        request.path_params["token"],
        request.path_params["name"],
        body or b"null",
        request.headers.get("idempotency-key"),
    )
    return json_answer({"duplicate": not is_new}, status=202)


async def complete_operation(gateway: Gateway, request: Request) -> Answer:
    """End an operation that runs elsewhere.

    Body: `{"result": ...}`, or `{"state": "failed" | "canceled", "message": "..."}`.
    """
    token = request.path_params["token"]
    document = read_object(await read_body(request.receive, PAYLOAD_BYTES))
    engine = gateway.parts.engine
    match document:
        case {"result": result, **rest} if not rest:
            content = Content(headers={}, data=b"")
            if result is not None:
                data = json.dumps(result, ensure_ascii=False).encode()
                content = Content(headers={"content-type": "application/json"}, data=data)
            ended = await engine.complete(token, content)
        case {"state": "failed", "message": str(message), **rest} if not rest:
            ended = await engine.fail(token, message)
        case {"state": "canceled", "message": str(message), **rest} if not rest:
            ended = await engine.complete_canceled(token, message)
        case _:
            raise bad_request(
                'send {"result": ...} or {"state": "failed" or "canceled", "message": "..."}'
            )
    if not ended:
        raise HandlerError("the operation has ended already", type=HandlerErrorType.CONFLICT)
    return Answer(204)


def _summary(stored: StoredOperation) -> dict[str, Any]:
    return {
        "token": stored.token,
        "endpoint": stored.endpoint,
        "service": stored.service,
        "operation": stored.operation,
        "caller": stored.caller,
        "state": stored.state.value,
        "pause_reason": stored.pause_reason,
        "attempts": stored.attempts,
        "losses": stored.losses,
        "run_at": shown_moment(stored.run_at),
        "progress": None if stored.progress is None else json.loads(stored.progress),
        "created_at": shown_moment(stored.created_at),
        "closed_at": shown_moment(stored.closed_at),
        "deadline_at": shown_moment(stored.deadline_at),
        "cancel_requested_at": shown_moment(stored.cancel_requested_at),
    }


def _step(entry: JournalEntry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "kind": entry.kind,
        "attempts": entry.attempt,
        "recorded_at": shown_moment(entry.created_at),
        "wake_at": shown_moment(entry.wake_at),
        "output": None
        if entry.output is None or entry.kind in {Kind.INTERRUPT, Kind.CANCELLED}
        else json.loads(entry.output),
        "error": None if entry.error is None else json.loads(entry.error),
    }


def _value(data: bytes, headers: str) -> dict[str, Any]:
    content_type = json.loads(headers).get("content-type")
    try:
        return {"content_type": content_type, "json": parse_json(data, "it") if data else None}
    except InvalidWireValue:
        return {"content_type": content_type, "base64": base64.b64encode(data).decode()}
