"""The end of an operation: one transaction for every way to end."""

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from callbacks import outbox
from callbacks.database import Statement, Transaction
from callbacks.outbox import Delivery, RenderedCompletion, Terms
from handlers.records import State
from handlers.store.fence import fence
from handlers.store.operations import is_open, operation

_bind = sa.bindparam

# Locked, so that nobody takes the operation over, or begins to watch it, between this and the end.
_MAY_END = Statement(sa.select(operation.c.watched).where(fence).with_for_update(key_share=True))
_MAY_END_ANY_EPOCH = Statement(
    sa.select(operation.c.watched)
    .where(operation.c.token == _bind("token"), is_open)
    .with_for_update(key_share=True)
)
_ENDED_BY_THIS = Statement(
    sa.select(operation.c.token).where(
        operation.c.token == _bind("token"),
        operation.c.state == _bind("new_state"),
        operation.c.closed_at == _bind("now"),
        sa.or_(_bind("epoch").is_(None), operation.c.epoch == _bind("epoch")),
    )
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
        owner=None,
        run_at=None,
        closed_at=_bind("now"),
        expires_at=_bind("new_expires_at"),
    )
)


@dataclass(slots=True)
class Finish:
    """End an operation and freeze its completion into its callbacks: the same for every end."""

    token: str
    epoch: int | None  # None: whoever runs it; an operator or an outside completion ends it
    state: State
    output: bytes | None
    output_headers: str | None
    failure: bytes | None
    error_detail: str | None
    completion: Callable[[], RenderedCompletion]  # asked where there is a callback
    now: int  # no other end that this process gives to the operation has the same
    retention_ms: int
    terms: Terms  # on which this process delivers

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries to send now, or None where the operation is not ours to end."""
        mine = _MAY_END if self.epoch is not None else _MAY_END_ANY_EPOCH
        asked = {"token": self.token, "epoch": self.epoch}
        rows = await tx.fetch(mine, asked)
        if not rows:
            return await self._after_lost_reply(tx)
        deliveries = await outbox.freeze(
            tx,
            self.token,
            self.completion,
            now=self.now,
            terms=self.terms,
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
                "new_expires_at": self.now + self.retention_ms,
            },
        )
        if rows[0][0]:
            await tx.notify("ended", self.token)
        return deliveries

    async def _after_lost_reply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries of an earlier commit of this very end, whose reply was lost."""
        ended = {
            "token": self.token,
            "epoch": self.epoch,
            "new_state": self.state,
            "now": self.now,
        }
        if not await tx.fetch(_ENDED_BY_THIS, ended):
            return None
        return await outbox.frozen_by(tx, self.token, self.terms.owner, self.now)
