"""The operators' API of callbacks: what is on its way, what was given up, and its replay."""

import json
from collections.abc import Mapping
from typing import Any

from nexusrpc import HandlerError, HandlerErrorType
from starlette.requests import Request

from callbacks.database import Row
from callbacks.delivery_queries import ATTEMPTS_OF_ONE, StoredCallback, read_callback
from callbacks.egress import read_destination
from callbacks.errors import UrlRefused
from callbacks.records import CallbackState
from gateway.api_values import (
    json_answer,
    read_moment,
    read_object,
    read_whole_number,
    shown_moment,
)
from gateway.asgi import Answer, read_body
from gateway.error_responses import bad_request
from gateway.runtime import Gateway
from gateway.stored_callbacks import (
    ONE_CALLBACK,
    SENT,
    CallbackFilter,
    ReplayDeadLetters,
    dead_letter_count,
    listing,
)

_MOST_LISTED = 1000
_MOST_REPLAYED = 5000
_REPLAYED_BY_DEFAULT = 500
_GREATEST_ID = 2**63 - 1
_BODY_BYTES = 64 * 1024

_TEXTS = ("destination", "service", "operation", "token", "since", "until", "as_of")
_FLAGS = ("all", "dry_run")
_REPLAYABLE = {CallbackState.FAILED, CallbackState.DELIVERED}


async def list_callbacks(gateway: Gateway, request: Request) -> Answer:
    """List callbacks, the newest first.

    Query: `state`, `destination`, `service`, `operation`, `token`, `since`, `until`, `limit` (100;
    1000 at most), `before` (an id: what was registered before it).
    """
    query = request.query_params
    state = query.get("state")
    if state is not None and state not in list(CallbackState):
        raise bad_request(f"state is one of {', '.join(CallbackState)}")
    limit = read_whole_number(query.get("limit", "100"), "limit", most=_MOST_LISTED)
    before = read_whole_number(query.get("before", str(_GREATEST_ID)), "before", most=_GREATEST_ID)
    given = _filter(query).params
    statement = listing(None if state is None else CallbackState(state), frozenset(given))
    rows = await gateway.parts.database.fetch(statement, {**given, "before": before, "most": limit})
    callbacks = [_read(row) for row in rows]
    now = gateway.parts.lease.now_ms()
    return json_answer(
        {
            "callbacks": [shown_callback(stored, of, now) for stored, of in callbacks],
            "next": callbacks[-1][0].id if len(callbacks) == limit else None,
        }
    )


async def show_callback(gateway: Gateway, request: Request) -> Answer:
    """Show one callback: where it is, its attempts, and of what it sends the names and the size."""
    callback_id = _callback_id(request)
    stored, of = await _load(gateway, callback_id)
    database = gateway.parts.database
    attempts = await database.fetch(ATTEMPTS_OF_ONE, {"callback_id": callback_id})
    [(headers, body_bytes)] = await database.fetch(SENT, {"row_id": callback_id})
    return json_answer(
        {
            **shown_callback(stored, of, gateway.parts.lease.now_ms()),
            "attempt_log": [shown_attempt(row) for row in attempts],
            # Their values may be secrets of the caller's.
            "header_names": [name for name, _ in json.loads(headers)],
            "body_bytes": body_bytes,
        }
    )


async def replay_callback(gateway: Gateway, request: Request) -> Answer:
    """Deliver a completion again that was given up, or that arrived."""
    callback_id = _callback_id(request)
    replayed = await gateway.parts.delivery.replay([callback_id])
    stored, of = await _load(gateway, callback_id)
    now = gateway.parts.lease.now_ms()
    if not replayed:
        raise HandlerError(_why_not_replayed(stored, now), type=HandlerErrorType.CONFLICT)
    return json_answer(shown_callback(stored, of, now), status=202)


async def replay_callbacks(gateway: Gateway, request: Request) -> Answer:
    """Deliver completions again that were given up, at most `limit` of those that a filter finds.

    Body: a filter as of `list_callbacks` or `"all": true`, and `as_of`, `limit`, `dry_run`.
    """
    parts = gateway.parts
    document = _replay_request(await read_body(request.receive, _BODY_BYTES))
    chosen = _filter(document)
    given = chosen.params
    if document.get("all", False) == bool(given):
        raise bad_request(
            '"all": true goes without a filter'
            if given
            else "which completions? Say destination, service, operation, token, since or until, "
            'or "all": true'
        )
    now = parts.lease.now_ms()
    # What is given up anew must not count: it would be replayed for ever.
    as_of = min(now, read_moment(document["as_of"], "as_of")) if "as_of" in document else now
    limit = document.get("limit", _REPLAYED_BY_DEFAULT)
    count = dead_letter_count(frozenset(given))
    if document.get("dry_run", False):
        [(matching,)] = await parts.database.fetch(count, {**given, "as_of": as_of})
        return json_answer({"matching": matching, "as_of": shown_moment(as_of)})
    replayed = await parts.database.write(
        ReplayDeadLetters(chosen, as_of, limit, now, parts.delivery.max_age_ms)
    )
    [(remaining,)] = await parts.database.fetch(count, {**given, "as_of": as_of})
    return json_answer({"replayed": replayed, "remaining": remaining, "as_of": shown_moment(as_of)})


def shown_callback(stored: StoredCallback, of: tuple[str, str, str], now: int) -> dict[str, Any]:
    """Return a callback as operators read it.

    Args:
        stored: the callback.
        of: endpoint, service and name of its operation.
        now: milliseconds since 1970.
    """
    endpoint, service, operation = of
    return {
        "id": stored.id,
        "kind": "notice" if stored.is_notice else "completion",
        "token": stored.token,
        "slot": stored.slot,
        "endpoint": endpoint,
        "service": service,
        "operation": operation,
        "destination": stored.destination,
        "url": stored.url,
        "state": stored.state.value,
        "waits_for": stored.waits_for(now),
        "attempts": stored.attempts,
        "retries": stored.retries,
        "reason": stored.reason,
        "next_at": shown_moment(stored.next_at),
        "deadline_at": shown_moment(stored.deadline_at),
        "created_at": shown_moment(stored.created_at),
        "closed_at": shown_moment(stored.closed_at),
    }


def shown_attempt(row: Row) -> dict[str, Any]:
    """Return a row of `ATTEMPTS_OF` or `ATTEMPTS_OF_ONE` as operators read it."""
    _, n, started_at, duration_ms, status, error, address, response_excerpt = row
    return {
        "attempt": n,
        "started_at": shown_moment(started_at),
        "duration_ms": duration_ms,
        "status": status,
        "error": error,
        "address": address,
        "response_excerpt": response_excerpt,
    }


def destination_name(text: str) -> str:
    """Return the `scheme://host:port` of a URL, or of a destination that was named as one.

    Raises:
        HandlerError: BAD_REQUEST; it is no URL.
    """
    try:
        return read_destination(text).name
    except UrlRefused as error:
        said = str(error).removeprefix("callback URL: ")
        raise bad_request(f"destination: {said}") from error


def _filter(given: Mapping[str, Any]) -> CallbackFilter:
    """Read a filter from a query or a body whose texts are texts."""
    for name in ("service", "operation", "token"):
        if "\0" in (given.get(name) or ""):
            raise bad_request(f"{name}: no name holds a NUL")  # and PostgreSQL refuses it
    return CallbackFilter(
        destination=destination_name(given["destination"]) if "destination" in given else None,
        service=given.get("service"),
        operation=given.get("operation"),
        token=given.get("token"),
        since=read_moment(given["since"], "since") if "since" in given else None,
        until=read_moment(given["until"], "until") if "until" in given else None,
    )


def _replay_request(body: bytes) -> dict[str, Any]:
    document = read_object(body)
    for name, value in document.items():
        if name in _TEXTS:
            fits, expected = isinstance(value, str), "a text"
        elif name in _FLAGS:
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "limit":
            fits = type(value) is int and 1 <= value <= _MOST_REPLAYED
            expected = f"a whole number from 1 to {_MOST_REPLAYED}"
        else:
            raise bad_request(
                f"there is no {name[:100]!r} here; there are "
                f"{', '.join((*_TEXTS, *_FLAGS))} and limit"
            )
        if not fits:
            raise bad_request(f"{name} is {expected}")
    return document


def _callback_id(request: Request) -> int:
    text = request.path_params["id"]
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _GREATEST_ID:
        return int(text)
    raise _unknown_callback()


async def _load(gateway: Gateway, callback_id: int) -> tuple[StoredCallback, tuple[str, str, str]]:
    rows = await gateway.parts.database.fetch(ONE_CALLBACK, {"row_id": callback_id})
    if not rows:
        raise _unknown_callback()
    return _read(rows[0])


def _unknown_callback() -> HandlerError:
    return HandlerError("no such callback", type=HandlerErrorType.NOT_FOUND)


def _read(row: Row) -> tuple[StoredCallback, tuple[str, str, str]]:
    endpoint, service, operation, *rest = row
    return read_callback(tuple(rest)), (endpoint, service, operation)


def _why_not_replayed(stored: StoredCallback, now: int) -> str:
    match stored.state, stored.waits_for(now):
        case CallbackState.REGISTERED, _:
            return "its operation has not ended, so there is nothing to deliver yet"
        case CallbackState.IN_FLIGHT, _:
            return "an attempt to deliver it is under way"
        case CallbackState.DUE, None:
            return f"it is not given up: it is sent again at {shown_moment(stored.next_at)}"
        case CallbackState.DUE, "disabled":
            return f"it is not given up: it waits until {stored.destination} is enabled"
        case CallbackState.DUE, "breaker":
            return (
                f"it is not given up: it waits until {stored.destination} answers again, "
                "or is enabled"
            )
        case CallbackState.DUE, _:
            return (
                f"it is not given up: it waits because {stored.destination} asked for that "
                "with Retry-After"
            )
        case _:
            return "it ended only just now; ask again"
