"""What operators read about deliveries."""

from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.breaker import Breaker
from callbacks.conditions import Condition, condition_of
from callbacks.database import Row, Statement, table_of
from callbacks.destinations import destination
from callbacks.outbox import callback
from callbacks.records import CallbackState, DeliveryAttemptRecord
from callbacks.standings import Standing

_attempt = table_of(DeliveryAttemptRecord)
_bind = sa.bindparam

_WAITS_FOR = {
    Condition.OPEN: "breaker",
    Condition.HALF_OPEN: "breaker",
    Condition.DISABLED: "disabled",
    Condition.WAITING: "retry_after",
}


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """One callback as operators see it, and what its destination is known for."""

    id: int
    slot: int
    url: str
    state: CallbackState
    attempts: int
    next_at: int | None
    created_at: int
    closed_at: int | None
    token: str
    destination: str
    retries: int
    reason: str | None
    deadline_at: int | None
    standing: Standing

    @property
    def is_notice(self) -> bool:
        """Whether it tells the operator of a dead letter, and is no completion."""
        return self.slot < 0

    def waits_for(self, now: int) -> str | None:
        """Say what keeps a due delivery from being sent, besides its time.

        Args:
            now: milliseconds since 1970.
        """
        if self.state is not CallbackState.DUE:
            return None
        return _WAITS_FOR.get(condition_of(self.standing, now))


CALLBACK_COLUMNS = (
    callback.c.id,
    callback.c.slot,
    callback.c.url,
    callback.c.state,
    callback.c.attempt,
    callback.c.next_at,
    callback.c.created_at,
    callback.c.closed_at,
    callback.c.token,
    callback.c.destination,
    callback.c.retries,
    callback.c.reason,
    callback.c.deadline_at,
    destination.c.failures,
    destination.c.open_until,
    destination.c.not_before,
    destination.c.disabled_at,
)
"""For `read_callback`, selected from `WITH_DESTINATION`."""

WITH_DESTINATION = callback.outerjoin(destination, destination.c.name == callback.c.destination)


def read_callback(row: Row) -> StoredCallback:
    """Turn a row of `CALLBACK_COLUMNS` into its value."""
    row_id, slot, url, state, *more, failures, open_until, not_before, disabled_at = row
    attempts, next_at, created_at, closed_at, token, name, retries, reason, deadline_at = more
    breaker = Breaker(failures=failures or 0, open_until=open_until)
    return StoredCallback(
        id=row_id,
        slot=slot,
        url=url,
        state=CallbackState(state),
        attempts=attempts,
        next_at=next_at,
        created_at=created_at,
        closed_at=closed_at,
        token=token,
        destination=name,
        retries=max(retries, 0),
        reason=reason,
        deadline_at=deadline_at,
        standing=Standing(name, breaker, not_before, disabled_at),
    )


CALLBACKS_OF = Statement(
    sa.select(*CALLBACK_COLUMNS)
    .select_from(WITH_DESTINATION)
    .where(callback.c.token == _bind("token"))
    .order_by(callback.c.slot)
)
_attempts = sa.select(
    _attempt.c.callback_id,
    _attempt.c.n,
    _attempt.c.started_at,
    _attempt.c.duration_ms,
    _attempt.c.status,
    _attempt.c.error,
    _attempt.c.address,
    _attempt.c.response_excerpt,
)
ATTEMPTS_OF = Statement(
    _attempts.where(
        _attempt.c.callback_id.in_(
            sa.select(callback.c.id).where(callback.c.token == _bind("token"))
        )
    ).order_by(_attempt.c.callback_id, _attempt.c.n)
)
ATTEMPTS_OF_ONE = Statement(
    _attempts.where(_attempt.c.callback_id == _bind("callback_id")).order_by(_attempt.c.n)
)


def _count(state: CallbackState) -> sa.Select[tuple[str, int, int | None]]:
    # A select for each state, so that each reads the index of its own, and nothing besides.
    oldest = sa.func.min(callback.c.next_at) if state is CallbackState.DUE else sa.null()
    return sa.select(sa.literal(state.value), sa.func.count(), oldest).where(
        callback.c.state == state.value
    )


_UNDELIVERED = (CallbackState.DUE, CallbackState.IN_FLIGHT, CallbackState.FAILED)

BACKLOG = Statement(sa.union_all(*map(_count, _UNDELIVERED)))
BACKLOG_BY_DESTINATION = Statement(
    sa.union_all(
        *(
            _count(state).add_columns(callback.c.destination).group_by(callback.c.destination)
            for state in _UNDELIVERED
        )
    )
)
BACKLOG_OF_DESTINATION = Statement(
    sa.union_all(
        *(_count(state).where(callback.c.destination == _bind("name")) for state in _UNDELIVERED)
    )
)
