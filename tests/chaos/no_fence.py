"""Takes the place of `handlers.store.fence` in a sabotaged gateway: anybody may write."""

import sqlalchemy as sa

from handlers.records import State
from handlers.store.operations import operation

fence = sa.and_(
    operation.c.token == sa.bindparam("token"),
    operation.c.epoch >= 0 * sa.bindparam("epoch", type_=sa.Integer),
    operation.c.state == State.RUNNING.value,
)
