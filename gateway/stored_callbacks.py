"""Callbacks with the operations that they are of: what operators ask for, and replay.

A filter becomes part of the statement, so that the database sees which index covers it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from callbacks.dead_letters import Replay
from callbacks.delivery_queries import CALLBACK_COLUMNS, WITH_DESTINATION
from callbacks.outbox import callback
from callbacks.records import CallbackState
from handlers.store.operations import operation

_bind = sa.bindparam

_of_operation = operation.c.token == callback.c.token
# When it ended; of one that has not, when it was registered.
_happened_at = sa.func.coalesce(callback.c.closed_at, callback.c.created_at)
_CONDITIONS = {
    "destination": callback.c.destination == _bind("destination"),
    "service": operation.c.service == _bind("service"),
    "operation": operation.c.operation == _bind("operation"),
    "token": callback.c.token == _bind("token"),
    "since": _happened_at >= _bind("since"),
    "until": _happened_at < _bind("until"),
}
_COLUMNS = (
    operation.c.endpoint,
    operation.c.service,
    operation.c.operation,
    *CALLBACK_COLUMNS,
)
_FROM = WITH_DESTINATION.join(operation, _of_operation)

ONE_CALLBACK = Statement(
    sa.select(*_COLUMNS).select_from(_FROM).where(callback.c.id == _bind("row_id"))
)
SENT = Statement(
    sa.select(callback.c.headers, sa.func.length(callback.c.body)).where(
        callback.c.id == _bind("row_id")
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackFilter:
    """Which callbacks are meant; what is None does not matter.

    Attributes:
        destination: where they go: `scheme://host:port`.
        service: of their operation.
        operation: the name of their operation.
        token: of their operation.
        since: when they ended, or were registered where they have not; milliseconds since 1970.
        until: the same; they did before.
    """

    destination: str | None = None
    service: str | None = None
    operation: str | None = None
    token: str | None = None
    since: int | None = None
    until: int | None = None

    @property
    def params(self) -> dict[str, Any]:
        """What is given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@cache
def listing(state: CallbackState | None, given: frozenset[str]) -> Statement:
    """Return the query for callbacks before an id, the newest first.

    Args:
        state: only those in this state.
        given: what a `CallbackFilter` says.
    """
    conditions = [callback.c.id < _bind("before"), *map(_CONDITIONS.__getitem__, sorted(given))]
    if state is not None:
        conditions.append(callback.c.state == state.value)
    return Statement(
        sa.select(*_COLUMNS)
        .select_from(_FROM)
        .where(*conditions)
        .order_by(callback.c.id.desc())
        .limit(_bind("most"))
    )


def _of_dead_letters(select: sa.Select[Any], given: frozenset[str]) -> sa.Select[Any]:
    if given & {"service", "operation"}:
        select = select.join(operation, _of_operation)
    return select.where(
        callback.c.state == CallbackState.FAILED.value,
        callback.c.slot >= 0,
        callback.c.closed_at <= _bind("as_of"),
        *map(_CONDITIONS.__getitem__, sorted(given)),
    )


@cache
def dead_letters(given: frozenset[str]) -> Statement:
    """Return the query that locks completions that were given up by a time, the oldest first.

    Args:
        given: what a `CallbackFilter` says.
    """
    ids = _of_dead_letters(sa.select(callback.c.id).select_from(callback), given)
    return Statement(
        ids.order_by(callback.c.id)
        .limit(_bind("most"))
        .with_for_update(of=callback, key_share=True)
    )


@cache
def dead_letter_count(given: frozenset[str]) -> Statement:
    """Return the query for how many completions `dead_letters` finds."""
    return Statement(_of_dead_letters(sa.select(sa.func.count()).select_from(callback), given))


@dataclass(frozen=True, slots=True)
class ReplayDeadLetters:
    """Deliver again what was given up by a time, the oldest first.

    What is given up anew has a later time, so that repeating this comes to an end.

    Args:
        filter: which completions.
        as_of: they were given up then or before, in milliseconds since 1970.
        most: how many of them.
        now: milliseconds since 1970.
        max_age_ms: for how long delivery to a destination is tried.
    """

    filter: CallbackFilter
    as_of: int
    most: int
    now: int
    max_age_ms: Callable[[str], int]

    @property
    def subject(self) -> str | None:
        """All dead letters: two of these take different ones."""
        return "dead letters"

    async def apply(self, tx: Transaction) -> int:
        """Return how many there were, at most as many as were asked for."""
        given = self.filter.params
        rows = await tx.fetch(
            dead_letters(frozenset(given)), {**given, "as_of": self.as_of, "most": self.most}
        )
        ids = [row_id for (row_id,) in rows]
        return len(await Replay(ids, self.now, self.max_age_ms).apply(tx))
