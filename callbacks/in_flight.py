"""Rows in flight that nobody holds: how they are found, and made due again."""

from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from callbacks.destinations import names_of, touch
from callbacks.leases import live_replicas
from callbacks.outbox import callback
from callbacks.outcomes import of_attempt
from callbacks.records import CallbackState

_bind = sa.bindparam

IN_FLIGHT_OF = Statement(
    sa.select(callback.c.id, callback.c.attempt, callback.c.next_at).where(
        callback.c.owner == _bind("owner_is"),
        callback.c.state == CallbackState.IN_FLIGHT.value,
    )
)
_RELEASE = Statement(
    sa.update(callback)
    .where(of_attempt, callback.c.next_at == _bind("next_at_is"))
    .values(state=CallbackState.DUE.value, owner=None, outcome_unknown=1, next_at=_bind("now"))
    .returning(callback.c.destination)
)
_orphaned = (
    sa.select(callback.c.id)
    .where(
        callback.c.state == CallbackState.IN_FLIGHT.value,
        sa.or_(callback.c.owner.is_(None), callback.c.owner.not_in(live_replicas())),
    )
    .with_for_update(key_share=True, skip_locked=True)
    .cte("orphaned")
)
_RECOVER = Statement(
    sa.update(callback)
    .where(callback.c.id.in_(sa.select(_orphaned.c.id)))
    .values(state=CallbackState.DUE.value, owner=None, outcome_unknown=1, next_at=_bind("now"))
    .returning(callback.c.destination)
)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A row in flight, as its owner saw it."""

    id: int
    owner: str
    attempt: int
    claimed_at: int


@dataclass(frozen=True, slots=True)
class Release:
    """Make a delivery due again that its owner does not hold, its outcome unknown."""

    row: InFlight
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return f"callback/{self.row.id}"

    async def apply(self, tx: Transaction) -> bool:
        """Return whether it was so still."""
        rows = await tx.fetch(
            _RELEASE,
            {
                "row_id": self.row.id,
                "owner_is": self.row.owner,
                "attempt_is": self.row.attempt,
                "next_at_is": self.row.claimed_at,
                "now": self.now,
            },
        )
        for name in names_of(rows):
            await touch(tx, name, self.now)
            await tx.notify("deliver", "")
        return bool(rows)


@dataclass(frozen=True, slots=True)
class RecoverInFlight:
    """Make the attempts of processes that are gone due again, their outcome unknown."""

    now: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> int:
        """Return how many there were."""
        rows = await tx.fetch(_RECOVER, {"now": self.now})
        for name in names_of(rows):
            await touch(tx, name, self.now)
        if rows:
            await tx.notify("deliver", "")
        return len(rows)
