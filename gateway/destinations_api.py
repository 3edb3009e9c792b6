"""The operators' API of destinations: how each is, what waits for it, and holding it back."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from callbacks.conditions import Condition, condition_of
from callbacks.database import Row
from callbacks.delivery_queries import BACKLOG_BY_DESTINATION, BACKLOG_OF_DESTINATION
from callbacks.records import CallbackState
from callbacks.standings import EVERY_STANDING, Standing, read_standing
from gateway.api_values import json_answer, read_object, shown_moment
from gateway.asgi import Answer, read_body
from gateway.callbacks_api import destination_name
from gateway.error_responses import bad_request
from gateway.runtime import Gateway

_BODY_BYTES = 64 * 1024
_TROUBLE = list(Condition)


@dataclass(slots=True)
class _Backlog:
    """What was not delivered to a destination."""

    due: int = 0
    in_flight: int = 0
    failed: int = 0
    oldest_due_at: int | None = None  # milliseconds since 1970

    def add(self, state: str, count: int, oldest: int | None) -> None:
        match CallbackState(state):
            case CallbackState.DUE:
                self.due, self.oldest_due_at = count, oldest
            case CallbackState.IN_FLIGHT:
                self.in_flight = count
            case CallbackState.FAILED:
                self.failed = count
            case other:
                raise AssertionError(f"{other} is no backlog")


async def list_destinations(gateway: Gateway, request: Request) -> Answer:
    """List destinations that made trouble or have something undelivered, the worst first.

    Query: `state`.
    """
    state = request.query_params.get("state")
    if state is not None and state not in _TROUBLE:
        raise bad_request(f"state is one of {', '.join(_TROUBLE)}")
    database = gateway.parts.database
    now = gateway.parts.lease.now_ms()
    backlogs: dict[str, _Backlog] = {}
    for *counted, name in await database.fetch(BACKLOG_BY_DESTINATION, {}):
        backlogs.setdefault(name, _Backlog()).add(*counted)
    standings = {name: Standing(name) for name in backlogs}
    standings |= {
        standing.name: standing
        for standing in map(read_standing, await database.fetch(EVERY_STANDING, {}))
    }
    found = [
        (condition_of(standing, now), standing, backlogs.get(name, _Backlog()))
        for name, standing in standings.items()
    ]
    found.sort(key=lambda each: (_TROUBLE.index(each[0]), each[1].name))
    return json_answer(
        {
            "destinations": [
                _shown(standing, backlog, now)
                for condition, standing, backlog in found
                if state in {None, condition}
            ]
        }
    )


async def disable_destination(gateway: Gateway, request: Request) -> Answer:
    """Hold the deliveries to a destination back. Body: `{"destination": URL}`."""
    name = await _named(request)
    return await _answer(gateway, await gateway.parts.delivery.disable(name))


async def enable_destination(gateway: Gateway, request: Request) -> Answer:
    """Deliver to a destination again. Body: `{"destination": URL}`."""
    name = await _named(request)
    return await _answer(gateway, await gateway.parts.delivery.enable(name))


async def _named(request: Request) -> str:
    match read_object(await read_body(request.receive, _BODY_BYTES)):
        case {"destination": str(text), **rest} if not rest:
            return destination_name(text)
        case _:
            raise bad_request('send {"destination": "https://host:443"}, or a URL there')


async def _answer(gateway: Gateway, standing: Standing) -> Answer:
    rows = await gateway.parts.database.fetch(BACKLOG_OF_DESTINATION, {"name": standing.name})
    return json_answer(_shown(standing, _sum(rows), gateway.parts.lease.now_ms()))


def _sum(rows: Iterable[Row]) -> _Backlog:
    backlog = _Backlog()
    for row in rows:
        backlog.add(*row)
    return backlog


def _shown(standing: Standing, backlog: _Backlog, now: int) -> dict[str, Any]:
    breaker = standing.breaker
    return {
        "name": standing.name,
        "state": condition_of(standing, now).value,
        "failures": breaker.failures,
        "openings": breaker.openings,
        "open_until": shown_moment(breaker.open_until),
        "probe_until": shown_moment(breaker.probe_until),
        "not_before": shown_moment(standing.not_before),
        "disabled_at": shown_moment(standing.disabled_at),
        "due": backlog.due,
        "in_flight": backlog.in_flight,
        "failed": backlog.failed,
        "oldest_due_at": shown_moment(backlog.oldest_due_at),
    }
