"""The end of retention: closed operations, and all that is kept with them, are deleted."""

from dataclasses import dataclass

import sqlalchemy as sa

from callbacks import retention as callback_retention
from callbacks.database import Statement, Transaction, listed, table_of
from handlers.records import JournalRecord, SignalRecord
from handlers.store.operations import operation
from nexus_spec.json_text import json_text

_bind = sa.bindparam
_journal = table_of(JournalRecord)
_signal = table_of(SignalRecord)

_EXPIRED = Statement(
    sa.select(operation.c.token)
    .where(operation.c.expires_at <= _bind("now"))
    .order_by(operation.c.expires_at)
    .limit(_bind("most"))
    .with_for_update(skip_locked=True)
)
# What is kept must not stand before the others each time.
_KEEP = Statement(
    sa.update(operation)
    .where(operation.c.token.in_(listed("tokens")))
    .values(expires_at=_bind("again_at"))
)
_DELETE = [
    Statement(sa.delete(table).where(table.c.token.in_(listed("tokens"))))
    for table in (_journal, _signal, operation)
]
NEXT_EXPIRY = Statement(
    sa.select(operation.c.expires_at)
    .where(operation.c.expires_at.is_not(None))
    .order_by(operation.c.expires_at)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Expired:
    """What one look at the expired operations brought."""

    deleted: int
    kept: int


@dataclass(frozen=True, slots=True)
class DeleteExpired:
    """Delete operations past their retention, unless a completion of theirs is undelivered.

    Those are looked at again later: a dead letter may be replayed one day.
    """

    now: int
    most: int
    keep_ms: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> Expired:
        """Delete at most so many, the oldest first."""
        asked = {"now": self.now, "most": self.most}
        tokens = {token for (token,) in await tx.fetch(_EXPIRED, asked)}
        if not tokens:
            return Expired(0, 0)
        kept = set(await callback_retention.undelivered(tx, sorted(tokens)))
        if kept:
            await tx.execute(
                _KEEP,
                {"tokens": json_text(sorted(kept)), "again_at": self.now + self.keep_ms},
            )
        gone = sorted(tokens - kept)
        if gone:
            await callback_retention.delete(tx, gone)
            for statement in _DELETE:
                await tx.execute(statement, {"tokens": json_text(gone)})
        return Expired(len(gone), len(kept))
