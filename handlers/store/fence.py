"""The fencing token: who may still write for a running operation."""

import sqlalchemy as sa

from handlers.records import State
from handlers.store.operations import operation

fence = sa.and_(
    operation.c.token == sa.bindparam("token"),
    operation.c.epoch == sa.bindparam("epoch"),
    operation.c.state == State.RUNNING.value,
)
