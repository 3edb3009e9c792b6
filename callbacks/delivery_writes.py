"""What delivery writes: claims, outcomes, and the repair of what nobody holds.

A row in flight is written to by (id, owner, attempt): a process whose lease ran out, and whose rows
others have taken, changes nothing any more. Each write may run twice (a commit whose reply was lost
is tried again) and then finds its own work done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction, listed, table_of
from callbacks.leases import live_replicas
from callbacks.outbox import COLUMNS, Delivery, callback, read_delivery
from callbacks.records import CallbackState, DeliveryAttemptRecord
from nexus_spec.json_text import json_text

_attempt = table_of(DeliveryAttemptRecord)
_bind = sa.bindparam


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one attempt brought, as it is kept for operators."""

    n: int
    started_at: int
    duration_ms: int
    status: int | None
    error: str | None
    address: str | None
    response_excerpt: str | None


_mine = sa.and_(
    callback.c.id == _bind("row_id"),
    callback.c.owner == _bind("owner_is"),
    callback.c.attempt == _bind("attempt_is"),
    callback.c.state == CallbackState.IN_FLIGHT.value,
)
_ARRIVED = Statement(
    sa.update(callback)
    .where(
        callback.c.id == _bind("row_id"),
        # Literals: an IN list of values would be expanded anew at each run.
        callback.c.state.in_([sa.literal_column(s) for s in ("'due'", "'in_flight'")]),
    )
    .values(state=CallbackState.DELIVERED.value, closed_at=_bind("now"), next_at=None)
)
_GIVE_UP = Statement(
    sa.update(callback)
    .where(_mine)
    .values(state=CallbackState.FAILED.value, closed_at=_bind("now"), next_at=None)
)
_RETRY = Statement(
    sa.update(callback)
    .where(_mine)
    .values(
        state=CallbackState.DUE.value,
        owner=None,
        next_at=_bind("new_next_at"),
        outcome_unknown=_bind("new_unknown"),
    )
)
_GIVE_BACK = Statement(
    sa.update(callback)
    .where(_mine)
    .values(
        state=CallbackState.DUE.value,
        owner=None,
        attempt=callback.c.attempt - 1,
        next_at=_bind("now"),
    )
)
_RELEASE = Statement(
    sa.update(callback)
    .where(_mine, callback.c.next_at == _bind("next_at_is"))
    .values(state=CallbackState.DUE.value, owner=None, outcome_unknown=1, next_at=_bind("now"))
)
_KEEP = Statement(sa.update(callback).where(_mine).values(next_at=_bind("now")))
_ADD_ATTEMPT = Statement(
    sa.insert(_attempt).values(
        {column: _bind(column) for column in _attempt.columns.keys()}  # noqa: SIM118  # no Mapping
    ),
    or_ignore=True,  # no two attempts have one number, and none is worth losing the outcome for
)
_due = (
    sa.select(callback.c.id)
    .where(
        callback.c.state == CallbackState.DUE.value,
        callback.c.next_at <= _bind("now"),
        callback.c.destination.not_in(listed("busy")),
    )
    .order_by(callback.c.next_at)
    .limit(_bind("most"))
    .with_for_update(key_share=True, skip_locked=True)
    # A CTE is run once; a subquery could be run again as its own rows stop being due.
    .cte("taken")
)
_CLAIM = Statement(
    sa.update(callback)
    .where(callback.c.id.in_(sa.select(_due.c.id)))
    .values(
        state=CallbackState.IN_FLIGHT.value,
        owner=_bind("new_owner"),
        attempt=callback.c.attempt + 1,
        next_at=_bind("now"),
    )
    .returning(*COLUMNS)
)
_NEXT_DUE = Statement(
    sa.select(sa.func.min(callback.c.next_at)).where(
        callback.c.state == CallbackState.DUE.value,
        callback.c.destination.not_in(listed("busy")),
    )
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
)
IN_FLIGHT_OF = Statement(
    sa.select(callback.c.id, callback.c.attempt, callback.c.next_at).where(
        callback.c.owner == _bind("owner_is"),
        callback.c.state == CallbackState.IN_FLIGHT.value,
    )
)


@dataclass(frozen=True, slots=True)
class Close:
    """End a delivery: it arrived, or it never will."""

    delivery: Delivery
    state: CallbackState
    now: int
    attempt: Attempt | None

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return _subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Write the outcome and, where one is kept, the attempt."""
        if self.state is CallbackState.DELIVERED:
            # Not fenced: it arrived, whoever has the row by now, and what that process makes of
            # its own copy is fenced by the row's being closed.
            closed = await tx.execute(_ARRIVED, {"row_id": self.delivery.id, "now": self.now})
        else:
            closed = await tx.execute(_GIVE_UP, {**_fence(self.delivery), "now": self.now})
        if closed and self.attempt is not None:
            await _add_attempt(tx, self.delivery.id, self.attempt)


@dataclass(frozen=True, slots=True)
class Retry:
    """Set a delivery due again."""

    delivery: Delivery
    next_at: int
    outcome_unknown: bool
    attempt: Attempt

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return _subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Write the attempt and when the next one is."""
        values = {
            "new_next_at": self.next_at,
            "new_unknown": int(self.outcome_unknown),
        }
        if await tx.execute(_RETRY, _fence(self.delivery) | values):
            await _add_attempt(tx, self.delivery.id, self.attempt)


@dataclass(frozen=True, slots=True)
class ClaimDue:
    """Take the deliveries that are due, but none of the busy destinations."""

    owner: str
    now: int
    most: int
    busy: Sequence[str]

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> tuple[list[Delivery], int | None]:
        """Return the claimed deliveries, and when the next one is due (None: never)."""
        busy = json_text(self.busy)
        rows = await tx.fetch(
            _CLAIM, {"new_owner": self.owner, "now": self.now, "most": self.most, "busy": busy}
        )
        claimed = [read_delivery(row) for row in rows]
        # The oldest first, in which order RETURNING need not have them.
        claimed.sort(key=lambda delivery: delivery.deadline_at)
        return claimed, (await tx.fetch(_NEXT_DUE, {"busy": busy}))[0][0]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Set a delivery due again that was claimed and never begun.

    By a process that claims nothing more: the row would be the same again under a second claim.
    """

    delivery: Delivery
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return _subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Take the claim back, as if it had not been made: the outcome is not unknown."""
        if await tx.execute(_GIVE_BACK, {**_fence(self.delivery), "now": self.now}):
            await tx.notify("deliver", "")


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on with a delivery that was claimed before the lease was lost, if nobody has taken it."""

    delivery: Delivery
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return _subject(self.delivery)

    async def apply(self, tx: Transaction) -> bool:
        """Return whether it is still this process that sends it."""
        return bool(await tx.execute(_KEEP, {**_fence(self.delivery), "now": self.now}))


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
        released = await tx.execute(
            _RELEASE,
            {
                "row_id": self.row.id,
                "owner_is": self.row.owner,
                "attempt_is": self.row.attempt,
                "next_at_is": self.row.claimed_at,
                "now": self.now,
            },
        )
        if released:
            await tx.notify("deliver", "")
        return bool(released)


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
        recovered = await tx.execute(_RECOVER, {"now": self.now})
        if recovered:
            await tx.notify("deliver", "")
        return recovered


def _subject(delivery: Delivery) -> str:
    return f"callback/{delivery.id}"


def _fence(delivery: Delivery) -> dict[str, Any]:
    return {
        "row_id": delivery.id,
        "owner_is": delivery.owner,
        "attempt_is": delivery.attempt,
    }


async def _add_attempt(tx: Transaction, callback_id: int, attempt: Attempt) -> None:
    values: dict[str, Any] = {
        "callback_id": callback_id,
        "n": attempt.n,
        "started_at": attempt.started_at,
        "duration_ms": attempt.duration_ms,
        "status": attempt.status,
        "error": attempt.error,
        "address": attempt.address,
        "response_excerpt": attempt.response_excerpt,
    }
    await tx.execute(_ADD_ATTEMPT, values)
