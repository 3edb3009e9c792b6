"""Signals: what is said to an operation from outside, kept until its retention ends."""

from dataclasses import dataclass
from enum import Enum, auto

import sqlalchemy as sa

from callbacks.database import Row, Statement, Transaction, table_of
from handlers.call_messages import CALL_MESSAGE
from handlers.records import JournalRecord, SignalRecord, State
from handlers.store.operations import is_open, operation

_signal = table_of(SignalRecord)
_journal = table_of(JournalRecord)
_cancelled = _journal.alias("cancelled")
_bind = sa.bindparam


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """One row of the signal table."""

    id: int
    name: str
    dedupe_id: str
    payload: bytes
    created_at: int


def read_signal(row: Row) -> StoredSignal:
    """Turn a row of `LOAD_SIGNALS` into its value."""
    return StoredSignal(*row)


# What a call got that the handler then cancelled was not consumed: the handler never saw it.
_consumed = sa.select(sa.cast(_journal.c.ref, sa.BigInteger)).where(
    _journal.c.token == _bind("token"),
    _journal.c.kind == "signal",
    _journal.c.ref.is_not(None),
    ~sa.exists().where(
        _cancelled.c.token == _journal.c.token,
        _cancelled.c.key == _journal.c.key + ".cancelled",
    ),
)
# The outcome of a call has its key in the entry's ref, and nothing else of a call has such a ref.
_outcomes = sa.select(_journal.c.ref).where(
    _journal.c.token == _bind("token"),
    _journal.c.kind == "call",
    _journal.c.ref.is_not(None),
    ~sa.exists().where(
        _cancelled.c.token == _journal.c.token,
        _cancelled.c.key == _journal.c.key + ".cancelled",
    ),
)
LOAD_SIGNALS = Statement(
    sa.select(
        _signal.c.id, _signal.c.name, _signal.c.dedupe_id, _signal.c.payload, _signal.c.created_at
    )
    .where(
        _signal.c.token == _bind("token"),
        _signal.c.id.not_in(_consumed),
        sa.or_(
            _signal.c.name != CALL_MESSAGE,
            (sa.literal(f"{CALL_MESSAGE}/") + _signal.c.dedupe_id).not_in(_outcomes),
        ),
    )
    .order_by(_signal.c.id)
)
"""What was said to an operation and is not consumed yet, in order."""


class Received(Enum):
    """What became of a signal."""

    NEW = auto()
    DUPLICATE = auto()  # one with its name and id was there already
    ENDED = auto()  # the operation has ended: nobody will read it
    UNKNOWN = auto()  # there is no such operation


_STATE = Statement(
    sa.select(operation.c.state)
    .where(operation.c.token == _bind("token"))
    .with_for_update(key_share=True)
)
_INSERT = Statement(
    sa.insert(_signal).values(
        {name: _bind(name) for name in ("token", "name", "dedupe_id", "payload", "created_at")}
    ),
    or_ignore=True,
)
_SAID = Statement(
    sa.select(_signal.c.id).where(
        _signal.c.token == _bind("token"),
        _signal.c.name == _bind("name"),
        _signal.c.dedupe_id == _bind("dedupe_id"),
    )
)
_WAKE = Statement(
    sa.update(operation)
    .where(operation.c.token == _bind("token"), is_open)
    .values(
        wake_seq=operation.c.wake_seq + 1,
        run_at=sa.case(
            (
                sa.and_(
                    operation.c.state == State.READY.value,
                    sa.or_(operation.c.run_at.is_(None), operation.c.run_at > _bind("now")),
                ),
                _bind("now"),
            ),
            else_=operation.c.run_at,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class RecordSignal:
    """Keep a signal for an operation, once, and wake it.

    Args:
        token: The operation.
        name: Which of its waits it is for.
        dedupe_id: Two signals of a name with the same one are the same.
        payload: What its handler gets.
        now: Milliseconds since 1970.
    """

    token: str
    name: str
    dedupe_id: str
    payload: bytes
    now: int

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> Received:
        """Return whether it is new, and whether there is anybody to read it."""
        rows = await tx.fetch(_STATE, {"token": self.token})
        if not rows:
            return Received.UNKNOWN
        if State(rows[0][0]).ended:
            # A sender whose first answer was lost asks again.
            said = {"token": self.token, "name": self.name, "dedupe_id": self.dedupe_id}
            return Received.DUPLICATE if await tx.fetch(_SAID, said) else Received.ENDED
        added = await tx.execute(
            _INSERT,
            {
                "token": self.token,
                "name": self.name,
                "dedupe_id": self.dedupe_id,
                "payload": self.payload,
                "created_at": self.now,
            },
        )
        if not added:
            return Received.DUPLICATE
        await tx.execute(_WAKE, {"token": self.token, "now": self.now})
        await tx.notify("wake", self.token)
        return Received.NEW
