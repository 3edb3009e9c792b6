"""What operators read about deliveries."""

import sqlalchemy as sa

from callbacks.database import Statement, table_of
from callbacks.outbox import callback
from callbacks.records import CallbackState, DeliveryAttemptRecord

_attempt = table_of(DeliveryAttemptRecord)
_bind = sa.bindparam

CALLBACKS_OF = Statement(
    sa.select(
        callback.c.id,
        callback.c.slot,
        callback.c.url,
        callback.c.state,
        callback.c.attempt,
        callback.c.next_at,
        callback.c.created_at,
        callback.c.closed_at,
    )
    .where(callback.c.token == _bind("token"))
    .order_by(callback.c.slot)
)
ATTEMPTS_OF = Statement(
    sa.select(
        _attempt.c.callback_id,
        _attempt.c.n,
        _attempt.c.started_at,
        _attempt.c.duration_ms,
        _attempt.c.status,
        _attempt.c.error,
        _attempt.c.address,
        _attempt.c.response_excerpt,
    )
    .where(
        _attempt.c.callback_id.in_(
            sa.select(callback.c.id).where(callback.c.token == _bind("token"))
        )
    )
    .order_by(_attempt.c.callback_id, _attempt.c.n)
)


def _count(state: CallbackState) -> sa.SelectBase:
    # A select for each state, so that each reads the index of its own.
    return sa.select(
        sa.literal(state.value), sa.func.count(), sa.func.min(callback.c.next_at)
    ).where(callback.c.state == state.value)


BACKLOG = Statement(
    sa.union_all(*map(_count, (CallbackState.DUE, CallbackState.IN_FLIGHT, CallbackState.FAILED)))
)
