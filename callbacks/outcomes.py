"""What becomes of an attempt: delivered, due again, or a dead letter.

A row in flight is written to by (id, owner, attempt): a process whose lease ran out, and whose rows
others have taken, changes nothing any more. Each write may run twice (a commit whose reply was lost
is tried again) and then finds its own work done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction, greatest, listed_rows, table_of
from callbacks.dead_letters import DeadLetter, Notice, tell_operator
from callbacks.destinations import touch
from callbacks.outbox import Delivery, callback
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


of_attempt = sa.and_(
    callback.c.id == _bind("row_id"),
    callback.c.owner == _bind("owner_is"),
    callback.c.attempt == _bind("attempt_is"),
    callback.c.state == CallbackState.IN_FLIGHT.value,
)
"""The row of an attempt, while it is its process's: the condition for `fence`."""

_listed_ids = sa.select(sa.cast(listed_rows("row_ids").c.value, sa.BigInteger))


def _close(which: sa.ColumnElement[bool]) -> Statement:
    return Statement(
        sa.update(callback)
        .where(
            which,
            sa.or_(
                callback.c.state == CallbackState.IN_FLIGHT.value,
                # One that was begun anew meanwhile is to be sent, whatever arrived before.
                sa.and_(callback.c.state == CallbackState.DUE.value, callback.c.retries >= 0),
            ),
        )
        .values(state=CallbackState.DELIVERED.value, closed_at=_bind("now"), next_at=None)
    )


_DELIVERED = _close(callback.c.id == _bind("row_id"))
_ARRIVED = _close(callback.c.id.in_(_listed_ids))
_GIVE_UP = Statement(
    sa.update(callback)
    .where(of_attempt)
    .values(
        state=CallbackState.FAILED.value,
        closed_at=_bind("now"),
        next_at=None,
        reason=_bind("new_reason"),
    )
    .returning(callback.c.slot, callback.c.created_at)
)
_RETRY = Statement(
    sa.update(callback)
    .where(of_attempt)
    .values(
        state=CallbackState.DUE.value,
        owner=None,
        retries=greatest(callback.c.retries, 0) + 1,
        next_at=_bind("new_next_at"),
        outcome_unknown=_bind("new_unknown"),
        reason=_bind("new_reason"),
    )
)
_ADD_ATTEMPT = Statement(
    sa.insert(_attempt).values(
        {column: _bind(column) for column in _attempt.columns.keys()}  # noqa: SIM118  # no Mapping
    ),
    or_ignore=True,  # no two attempts have one number, and none is worth losing the outcome for
)


@dataclass(frozen=True, slots=True)
class Arrived:
    """End deliveries whose first attempts arrived; of those no attempt is kept.

    Not fenced: they arrived, whoever has the rows by now, and what that process makes of its own
    copies is fenced by the rows' being closed.
    """

    deliveries: Sequence[Delivery]
    now: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular: while an attempt is under way, no other write is about it."""
        return None

    async def apply(self, tx: Transaction) -> None:
        """Write it down, all at once."""
        ids = json_text([delivery.id for delivery in self.deliveries])
        await tx.execute(_ARRIVED, {"row_ids": ids, "now": self.now})


@dataclass(frozen=True, slots=True)
class Delivered:
    """End a delivery that arrived after other attempts, or probably did. Not fenced either."""

    delivery: Delivery
    now: int
    attempt: Attempt

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Write the outcome and the attempt."""
        if await tx.execute(_DELIVERED, {"row_id": self.delivery.id, "now": self.now}):
            await _add_attempt(tx, self.delivery.id, self.attempt)


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End a delivery as a dead letter: it is refused for good, or too old."""

    delivery: Delivery
    reason: str
    now: int
    attempt: Attempt
    notice: Notice | None  # how the operator is told

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Write the outcome, the attempt, and the notice to the operator."""
        values = {"now": self.now, "new_reason": self.reason}
        for slot, created_at in await tx.fetch(_GIVE_UP, fence(self.delivery) | values):
            await _add_attempt(tx, self.delivery.id, self.attempt)
            letter = DeadLetter(
                id=self.delivery.id,
                token=self.delivery.token,
                slot=slot,
                destination=self.delivery.destination,
                attempts=self.delivery.attempt,
                reason=self.reason,
                created_at=created_at,
            )
            await tell_operator(tx, letter, self.notice, self.now)


@dataclass(frozen=True, slots=True)
class Retry:
    """Set a delivery due again."""

    delivery: Delivery
    next_at: int
    reason: str
    outcome_unknown: bool
    now: int
    attempt: Attempt

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Write the attempt and when the next one is."""
        values = {
            "new_next_at": self.next_at,
            "new_unknown": int(self.outcome_unknown),
            "new_reason": self.reason,
        }
        if await tx.execute(_RETRY, fence(self.delivery) | values):
            await _add_attempt(tx, self.delivery.id, self.attempt)
            await touch(tx, self.delivery.destination, self.now)


def subject(delivery: Delivery) -> str:
    """Return what keeps two writes about a delivery apart."""
    return f"callback/{delivery.id}"


def fence(delivery: Delivery) -> dict[str, Any]:
    """Return the parameters of `of_attempt`."""
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
