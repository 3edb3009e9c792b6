"""The end of an operation: one transaction for every way to end."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from callbacks import outbox
from callbacks.database import Statement, Transaction
from callbacks.outbox import Delivery
from handlers.records import State
from handlers.store.fence import fence
from handlers.store.operations import is_open, operation

_bind = sa.bindparam

RenderedCompletion = tuple[Sequence[tuple[str, str]], bytes]

_MAY_END = Statement(sa.select(operation.c.token).where(fence))
_MAY_END_ANY_EPOCH = Statement(
    sa.select(operation.c.token).where(operation.c.token == _bind("token"), is_open)
)
_END = Statement(
    sa.update(operation)
    .where(operation.c.token == _bind("token"))
    .values(
        state=_bind("new_state"),
        output=_bind("new_output"),
        output_headers=_bind("new_output_headers"),
        failure=_bind("new_failure"),
        error_detail=_bind("new_detail"),
        pause_reason=None,
        closed_at=_bind("now"),
    )
)


@dataclass(frozen=True, slots=True)
class Finish:
    """End an operation and freeze its completion into its callbacks: the same for every end."""

    token: str
    epoch: int | None  # None: whoever runs it; an operator or an outside completion ends it
    state: State
    output: bytes | None
    output_headers: str | None
    failure: bytes | None
    error_detail: str | None
    completion: RenderedCompletion
    now: int
    max_age_ms: int
    claim: bool

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries to send now, or None where the operation is not ours to end."""
        mine = _MAY_END if self.epoch is not None else _MAY_END_ANY_EPOCH
        if not await tx.fetch(mine, {"token": self.token, "epoch": self.epoch}):
            return None
        deliveries = await outbox.freeze(
            tx,
            self.token,
            self.completion,
            now=self.now,
            max_age_ms=self.max_age_ms,
            claim=self.claim,
        )
        await tx.execute(
            _END,
            {
                "token": self.token,
                "new_state": self.state,
                "new_output": self.output,
                "new_output_headers": self.output_headers,
                "new_failure": self.failure,
                "new_detail": self.error_detail,
                "now": self.now,
            },
        )
        return deliveries
