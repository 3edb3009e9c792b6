"""The journal: what happened in a handler, added and never changed."""

from dataclasses import dataclass, fields

import sqlalchemy as sa

from callbacks.database import Row, Statement, Transaction, table_of
from handlers.records import JournalRecord
from handlers.store.fence import fence
from handlers.store.operations import operation

_journal = table_of(JournalRecord)
_bind = sa.bindparam


@dataclass(slots=True)
class JournalEntry:
    """One row of the journal table."""

    key: str
    ordinal: int
    kind: str
    args_hash: bytes | None
    output: bytes | None
    error: str | None
    ref: str | None
    attempt: int
    wake_at: int | None
    created_at: int


_COLUMNS = [_journal.c[field.name] for field in fields(JournalEntry)]


def read_entry(row: Row) -> JournalEntry:
    """Turn a row of `LOAD_JOURNAL` into its value."""
    return JournalEntry(*row)


LOAD_JOURNAL = Statement(
    sa.select(*_COLUMNS).where(_journal.c.token == _bind("token")).order_by(_journal.c.ordinal)
)

_APPEND = Statement(
    sa.insert(_journal).from_select(
        [
            "token",
            "key",
            "ordinal",
            "kind",
            "args_hash",
            "output",
            "error",
            "ref",
            "attempt",
            "wake_at",
            "epoch",
            "created_at",
        ],
        sa.select(
            operation.c.token,
            _bind("key", type_=sa.String),
            _bind("ordinal", type_=sa.Integer),
            _bind("kind", type_=sa.String),
            _bind("args_hash", type_=sa.LargeBinary),
            _bind("output", type_=sa.LargeBinary),
            _bind("error", type_=sa.String),
            _bind("ref", type_=sa.String),
            _bind("attempt", type_=sa.Integer),
            _bind("wake_at", type_=sa.BigInteger),
            operation.c.epoch,
            _bind("created_at", type_=sa.BigInteger),
        )
        .where(fence)
        # Whoever takes the operation over waits for this, and then finds the entry.
        .with_for_update(key_share=True, of=operation),
    ),
    or_ignore=True,
)
_IS_RECORDED = Statement(
    sa.select(_journal.c.key).where(
        _journal.c.token == _bind("token"),
        _journal.c.key == _bind("key"),
        _journal.c.epoch == _bind("epoch"),
        _journal.c.ordinal == _bind("ordinal"),
    )
)


@dataclass(slots=True)
class AppendJournal:
    """Record that something happened in a handler."""

    token: str
    epoch: int
    entry: JournalEntry

    @property
    def subject(self) -> str | None:
        """Nothing: entries are only added."""
        return None

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer ours to write."""
        entry = self.entry
        values = {
            "token": self.token,
            "epoch": self.epoch,
            "key": entry.key,
            "ordinal": entry.ordinal,
            "kind": entry.kind,
            "args_hash": entry.args_hash,
            "output": entry.output,
            "error": entry.error,
            "ref": entry.ref,
            "attempt": entry.attempt,
            "wake_at": entry.wake_at,
            "created_at": entry.created_at,
        }
        # A commit that failed may have been one all the same, and is then tried again.
        return bool(await tx.execute(_APPEND, values)) or bool(await tx.fetch(_IS_RECORDED, values))
