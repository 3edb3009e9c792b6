"""What comes to an operation from outside, and reaches the process that runs it."""

from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from callbacks.leases import live_replicas
from handlers.records import State
from handlers.store.operations import is_open, operation

_bind = sa.bindparam

_sooner = sa.or_(operation.c.run_at.is_(None), operation.c.run_at > _bind("now"))
_REQUEST_CANCEL = Statement(
    sa.update(operation)
    .where(operation.c.token == _bind("token"), is_open)
    .values(
        cancel_requested_at=sa.func.coalesce(operation.c.cancel_requested_at, _bind("now")),
        wake_seq=operation.c.wake_seq + 1,
        run_at=sa.case(
            (sa.and_(operation.c.state == State.READY.value, _sooner), _bind("now")),
            else_=operation.c.run_at,
        ),
    )
)
OWNER_IS_LIVE = Statement(
    sa.select(operation.c.owner).where(
        operation.c.token == _bind("token"),
        operation.c.state == State.RUNNING.value,
        operation.c.owner.in_(live_replicas()),
    )
)
_WATCH = Statement(
    sa.update(operation).where(operation.c.token == _bind("token"), is_open).values(watched=1)
)


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Note that a caller wants an operation canceled, and wake it."""

    token: str
    now: int

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation has ended."""
        if not await tx.execute(_REQUEST_CANCEL, {"token": self.token, "now": self.now}):
            return False
        await tx.notify("wake", self.token)
        return True


@dataclass(frozen=True, slots=True)
class Watch:
    """Have every process told when an operation ends: somebody waits for it here."""

    token: str

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation has ended."""
        return bool(await tx.execute(_WATCH, {"token": self.token}))
