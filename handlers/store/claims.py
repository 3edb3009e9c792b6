"""Taking operations under a new epoch; what an earlier owner still writes is then fenced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.database import Row, Statement, Transaction, listed, table_of
from callbacks.leases import live_replicas
from handlers.records import JournalRecord, State
from handlers.store.operations import COLUMNS, StoredOperation, hosted_as, operation, read_operation
from nexus_spec.json_text import json_text

_bind = sa.bindparam
_journal = table_of(JournalRecord)

# From so many losses on an operation may be what kills its process: it is taken up alone.
SUSPECT_AFTER = 2

_is_owned = sa.and_(operation.c.state == State.RUNNING.value, operation.c.owner.is_not(None))
_made_progress = sa.exists(
    sa.select(_journal.c.token).where(
        _journal.c.token == operation.c.token, _journal.c.epoch == operation.c.epoch
    )
)

# ---------------------------------------------------------------- which


def _some(*conditions: sa.ColumnElement[bool], order: Sequence[Any] = ()) -> Statement:
    """Return a query for some operations that no other process is claiming at this moment."""
    return Statement(
        sa.select(operation.c.token)
        .where(*conditions)
        .order_by(*order)
        .limit(_bind("most"))
        .with_for_update(key_share=True, skip_locked=True)
    )


_is_served_here = hosted_as.in_(listed("hosted"))
_SOME_DUE = _some(
    operation.c.state == State.READY.value,
    operation.c.run_at <= _bind("now"),
    _is_served_here,
    order=[operation.c.run_at],
)
NEXT_DUE = Statement(
    sa.select(operation.c.run_at)
    .where(
        operation.c.state == State.READY.value,
        # Sleeping ones that are not served here would be gone through one by one.
        operation.c.run_at <= _bind("until"),
        _is_served_here,
    )
    .order_by(operation.c.run_at)
    .limit(1)
)
_owner_is_gone = operation.c.owner.not_in(live_replicas())
GONE_OWNERS = Statement(sa.select(operation.c.owner).where(_is_owned, _owner_is_gone).distinct())
_lapsed = (_is_owned, operation.c.owner == _bind("owner"), _owner_is_gone, _is_served_here)
_SOME_LAPSED = _some(*_lapsed, operation.c.losses < SUSPECT_AFTER)
_SUSPECTS = _some(
    *_lapsed,
    operation.c.losses >= SUSPECT_AFTER,
    # The most suspicious first: what is innocent must not be in memory with it again and again.
    order=[operation.c.losses.desc(), operation.c.token],
)

_waits_for_a_handler = sa.or_(
    sa.and_(operation.c.state == State.READY.value, operation.c.run_at <= _bind("now")),
    sa.and_(_is_owned, _owner_is_gone),
)
UNSERVED = Statement(
    sa.select(operation.c.service, operation.c.operation)
    .where(_waits_for_a_handler, ~_is_served_here)
    .limit(100)
)
OWNED = Statement(
    sa.select(operation.c.token).where(
        operation.c.state == State.RUNNING.value, operation.c.owner == _bind("me")
    )
)
ON_PROBATION = Statement(
    sa.select(_made_progress).where(
        operation.c.token == _bind("token"),
        operation.c.owner == _bind("me"),
        operation.c.state == State.RUNNING.value,
    )
)

# ---------------------------------------------------------------- how


def _claim(*conditions: sa.ColumnElement[bool], **values: Any) -> Statement:
    return Statement(
        sa.update(operation)
        .where(operation.c.token.in_(listed("tokens")), *conditions)
        .values(
            state=State.RUNNING.value,
            owner=_bind("me"),
            epoch=operation.c.epoch + 1,
            run_at=None,
            **values,
        )
        .returning(*COLUMNS)
    )


_CLAIM_DUE = _claim(operation.c.state == State.READY.value, losses=0)
# In a form that no index answers: a planner that takes the few tokens for more than all that is
# owned would compare each with each.
_state = sa.func.coalesce(operation.c.state, "")
_owner = sa.func.coalesce(operation.c.owner, "")
_CLAIM_LAPSED = _claim(
    _state == State.RUNNING.value,
    _owner != "",
    losses=sa.case((_made_progress, 1), else_=operation.c.losses + 1),
)
_CLAIM_OWN = _claim(_state == State.RUNNING.value, _owner == _bind("me"))
_CLAIM_PAUSED = _claim(
    operation.c.state == State.PAUSED.value,
    operation.c.epoch == _bind("epoch"),
    losses=0,
    attempts=0,
    pause_reason=None,
)
_CLAIMED_ALREADY = Statement(
    sa.select(*COLUMNS).where(
        operation.c.token == _bind("token"),
        operation.c.owner == _bind("me"),
        operation.c.epoch == _bind("epoch") + 1,
        operation.c.state == State.RUNNING.value,
    )
)
_POISON = Statement(
    sa.update(operation)
    .where(operation.c.token.in_(listed("tokens")))
    .values(state=State.PAUSED.value, owner=None, pause_reason=_bind("reason"))
)
_ABSOLVE = Statement(
    sa.update(operation)
    .where(
        operation.c.token == _bind("token"),
        operation.c.owner == _bind("me"),
        operation.c.state == State.RUNNING.value,
        operation.c.losses > 0,
    )
    .values(losses=operation.c.losses - 1)
)


def poison_reason(losses: int) -> str:
    """Return what an operator is told of an operation that loses its process every time."""
    return (
        f"its process was lost {losses} times in a row while it ran, and it recorded nothing in "
        "between: it may be what crashes it. Look for the cause in its handler, then continue it "
        "with: nexus-gateway operations resume TOKEN"
    )


@dataclass(frozen=True, slots=True)
class ClaimDue:
    """Take operations that are due: handed back, or woken from their sleep."""

    me: str
    hosted: str  # JSON array of `hosted_as` values
    now: int
    most: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> list[StoredOperation]:
        """Return what is ours from now on, the longest due first."""
        due = {"now": self.now, "hosted": self.hosted, "most": self.most}
        tokens = [token for (token,) in await tx.fetch(_SOME_DUE, due)]
        return await _take(tx, _CLAIM_DUE, self.me, tokens)


@dataclass(frozen=True, slots=True)
class Lapsed:
    """What was claimed of a process that is gone."""

    operations: list[StoredOperation]
    poisoned: list[StoredOperation]  # paused instead
    looked_at: int  # how many there were to claim, up to the most that was asked for


@dataclass(frozen=True, slots=True)
class ClaimLapsed:
    """Take operations whose process was lost, and pause those that lost it too often.

    Each claim counts one loss, or begins to count anew where the operation recorded something
    under the epoch that was lost.
    """

    me: str
    owner: str  # the process that is gone
    hosted: str  # JSON array of `hosted_as` values
    most: int
    suspects: bool  # those that lost several processes already, or the others
    poison_after: int
    absolved: str | None = None  # an operation of ours that outlived its probation

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> Lapsed:
        """Return what is ours from now on."""
        some = _SUSPECTS if self.suspects else _SOME_LAPSED
        asked = {"owner": self.owner, "hosted": self.hosted, "most": self.most}
        tokens = [token for (token,) in await tx.fetch(some, asked)]
        claimed = await _take(tx, _CLAIM_LAPSED, self.me, tokens)
        poisoned = [stored for stored in claimed if stored.losses >= self.poison_after]
        if poisoned:
            await tx.execute(
                _POISON,
                {
                    "tokens": json_text([stored.token for stored in poisoned]),
                    "reason": poison_reason(self.poison_after),
                },
            )
        if self.absolved is not None and len(poisoned) < len(claimed):
            # The next one is on probation now: should the process die, it is not the former's.
            await tx.execute(_ABSOLVE, {"token": self.absolved, "me": self.me})
        taken = [stored for stored in claimed if stored.losses < self.poison_after]
        return Lapsed(taken, poisoned, len(tokens))


@dataclass(frozen=True, slots=True)
class ClaimOwn:
    """Take again what is ours in the database and not in our memory: a reply was lost."""

    me: str
    tokens: Sequence[str]

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> list[StoredOperation]:
        """Return those that were ours still."""
        return await _take(tx, _CLAIM_OWN, self.me, self.tokens)


@dataclass(frozen=True, slots=True)
class ClaimPaused:
    """Take a paused operation; it gets all its attempts again, and its losses are forgotten."""

    me: str
    token: str
    epoch: int

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> StoredOperation | None:
        """Return the operation, or None where it is paused no longer."""
        asked = {"me": self.me, "token": self.token, "epoch": self.epoch}
        rows: Sequence[Row] = await tx.fetch(
            _CLAIM_PAUSED, {**asked, "tokens": json_text([self.token])}
        )
        # A commit that failed may have been one all the same.
        rows = rows or await tx.fetch(_CLAIMED_ALREADY, asked)
        return read_operation(rows[0]) if rows else None


async def _take(
    tx: Transaction, claim: Statement, me: str, tokens: Sequence[str]
) -> list[StoredOperation]:
    if not tokens:
        return []
    rows = await tx.fetch(claim, {"me": me, "tokens": json_text(list(tokens))})
    by_token = {stored.token: stored for stored in map(read_operation, rows)}
    return [by_token[token] for token in tokens if token in by_token]
