"""Operations whose deadline passes while no handler runs them."""

import sqlalchemy as sa

from callbacks.database import Statement, listed
from callbacks.leases import live_replicas
from handlers.records import State
from handlers.store.operations import COLUMNS, hosted_as, operation

_bind = sa.bindparam

_is_durable_here = hosted_as.in_(listed("hosted"))
# It has been due, or its process gone, for so long that it is served by nobody else either.
_is_overdue = operation.c.deadline_at <= _bind("overdue_before")
_nobody_runs_it = sa.or_(
    operation.c.state == State.PAUSED.value,
    # A custom operation, which runs elsewhere.
    sa.and_(operation.c.state == State.RUNNING.value, operation.c.owner.is_(None)),
    # Those that a handler here would run to their end are taken up for it instead.
    sa.and_(operation.c.state == State.READY.value, ~_is_durable_here, _is_overdue),
    sa.and_(
        operation.c.state == State.RUNNING.value,
        operation.c.owner.not_in(live_replicas()),
        ~_is_durable_here,
        _is_overdue,
    ),
)
# As the index says it: by state a planner would look at all that have not ended.
_has_deadline = sa.and_(operation.c.closed_at.is_(None), operation.c.deadline_at.is_not(None))

PAST_DEADLINE = Statement(
    sa.select(*COLUMNS)
    .where(_has_deadline, operation.c.deadline_at <= _bind("now"), _nobody_runs_it)
    .order_by(operation.c.deadline_at)
    .limit(_bind("most"))
)
NEXT_DEADLINE = Statement(
    sa.select(operation.c.deadline_at)
    .where(
        _has_deadline,
        operation.c.deadline_at > _bind("now"),
        operation.c.deadline_at <= _bind("until"),
        sa.or_(
            operation.c.state == State.PAUSED.value,
            sa.and_(operation.c.state == State.RUNNING.value, operation.c.owner.is_(None)),
            ~_is_durable_here,
        ),
    )
    .order_by(operation.c.deadline_at)
    .limit(1)
)
