"""Taking an operation under a new epoch."""

from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from handlers.records import State
from handlers.store.operations import operation

_bind = sa.bindparam

_CLAIM = Statement(
    sa.update(operation)
    .where(
        operation.c.token == _bind("token"),
        operation.c.state == _bind("state_is"),
    )
    .values(
        state=State.RUNNING.value,
        epoch=operation.c.epoch + 1,
        pause_reason=None,
        attempts=sa.case((operation.c.state == State.PAUSED.value, 0), else_=operation.c.attempts),
    )
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Take an operation under a new epoch; what an earlier owner still writes is then fenced.

    One that was paused gets all its attempts again.
    """

    token: str
    state: State

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer in that state."""
        return bool(
            await tx.execute(
                _CLAIM,
                {"token": self.token, "state_is": self.state},
            )
        )
