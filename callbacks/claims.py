"""Taking due deliveries out of the outbox, and giving back what was not begun.

Through their destinations: each gives a few, those that wait longest come first, and one that is
held gives none, or a single probe where its breaker is open. Nothing here reads more rows than it
takes, whatever waits behind a destination.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from callbacks.database import ALONE, Statement, Transaction, listed, listed_rows
from callbacks.destinations import destination, end_probe, look_again, touch
from callbacks.outbox import COLUMNS, Delivery, callback, read_delivery
from callbacks.outcomes import fence, of_attempt, subject
from callbacks.records import CallbackState
from nexus_spec.json_text import json_text

_DESTINATIONS_AT_ONCE = 64

_bind = sa.bindparam

_TO_LOOK_AT = Statement(
    sa.select(
        destination.c.name,
        destination.c.open_until,
        sa.case(
            (destination.c.disabled_at.is_not(None), 1),
            (sa.func.coalesce(destination.c.open_until, 0) > _bind("now"), 1),
            (sa.func.coalesce(destination.c.probe_until, 0) > _bind("now"), 1),
            (sa.func.coalesce(destination.c.not_before, 0) > _bind("now"), 1),
            else_=0,
        ),
    )
    .where(
        destination.c.wake_at <= _bind("now"),
        destination.c.name.not_in(listed("busy")),
    )
    .order_by(destination.c.wake_at)
    .limit(_bind("most"))
    # Another process that has it is taking its deliveries at this moment.
    .with_for_update(key_share=True, skip_locked=True)
)
_NEXT_LOOK = Statement(
    sa.select(destination.c.wake_at)
    .where(destination.c.wake_at.is_not(None), destination.c.name.not_in(listed("busy")))
    .order_by(destination.c.wake_at)
    .limit(1)
)
_names = listed_rows("names")
_of_one = (
    sa.select(callback.c.id)
    .where(
        callback.c.destination == _names.c.value,
        callback.c.state == CallbackState.DUE.value,
        callback.c.next_at <= _bind("now"),
    )
    .order_by(callback.c.next_at)
    .limit(_bind("each"))
)
_row = callback.alias("due")
_few_of_each = (
    sa.select(_row.c.id)
    .select_from(_names)
    .join(_row, _row.c.id.in_(_of_one.correlate(_names)))
    # A CTE is run once; a subquery could be run again as its own rows stop being due.
    .cte("taken")
)
_lateral = _of_one.lateral("of_one")
_few_of_each_on_postgres = (
    sa.select(_lateral.c.id).select_from(_names).join(_lateral, sa.true()).cte("taken")
)


def _claim(taken: sa.CTE) -> sa.sql.ClauseElement:
    return (
        sa.update(callback)
        .where(
            callback.c.id.in_(sa.select(taken.c.id)),
            # Asked again of a row that was locked by someone else just now.
            callback.c.state == CallbackState.DUE.value,
        )
        .values(
            state=CallbackState.IN_FLIGHT.value,
            owner=_bind("new_owner"),
            attempt=callback.c.attempt + 1,
            next_at=_bind("now"),
        )
        .returning(*COLUMNS)
    )


_CLAIM = Statement(_claim(_few_of_each), on_postgres=_claim(_few_of_each_on_postgres))
_WAIT_FOR_PROBE = Statement(
    sa.update(destination)
    .where(destination.c.name.in_(listed("names")), destination.c.open_until.is_not(None))
    .values(probe_until=_bind("new_probe_until"))
)
_GIVE_BACK = Statement(
    sa.update(callback)
    .where(of_attempt)
    .values(
        state=CallbackState.DUE.value,
        owner=None,
        attempt=callback.c.attempt - 1,
        next_at=_bind("now"),
    )
)
_KEEP = Statement(sa.update(callback).where(of_attempt).values(next_at=_bind("now")))


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought.

    Attributes:
        deliveries: to be sent now, the oldest first.
        next_at: when to look again, in milliseconds since 1970; None: when told.
        more: some destination had more than it was asked for.
    """

    deliveries: Sequence[Delivery]
    next_at: int | None
    more: bool


@dataclass(frozen=True, slots=True)
class ClaimDue:
    """Take deliveries that are due.

    Args:
        owner: The process that will send them.
        now: Milliseconds since 1970.
        most: How many, altogether.
        takes: How many of a destination.
        busy: Destinations of which this process has enough.
        probe_ms: How long the probe of an open breaker is waited for.
    """

    owner: str
    now: int
    most: int
    takes: Callable[[str], int]
    busy: Sequence[str]
    probe_ms: int

    @property
    def subject(self) -> str | None:
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> Claimed:
        """Return what was claimed."""
        busy = json_text(self.busy)
        most = min(self.most, _DESTINATIONS_AT_ONCE)
        rows = await tx.fetch(_TO_LOOK_AT, {"now": self.now, "busy": busy, "most": most})
        claimed: list[Delivery] = []
        more = False
        if rows:
            sound = [name for name, open_until, held in rows if open_until is None and not held]
            share = max(1, self.most // len(rows))
            by_count: defaultdict[int, list[str]] = defaultdict(list)
            for name in sound:
                by_count[max(1, min(self.takes(name), share))].append(name)
            for each, names in by_count.items():
                claimed += await self._take(tx, names, each)
            taken = Counter(delivery.destination for delivery in claimed)
            # Of one that takes no more now it is told when it does.
            more = len(rows) == most or any(count >= share for count in taken.values())
            # One at a time: what is asked of a destination that may still be dead is little.
            half_open = [name for name, open_until, held in rows if open_until and not held]
            probes = await self._take(tx, half_open, 1)
            if probes:
                await tx.execute(
                    _WAIT_FOR_PROBE,
                    {
                        "names": json_text([probe.destination for probe in probes]),
                        "new_probe_until": self.now + self.probe_ms,
                    },
                )
                claimed += [replace(probe, probe=True) for probe in probes]
            await look_again(tx, [name for name, _, _ in rows], self.now)
            claimed.sort(key=lambda delivery: delivery.deadline_at)
        next_look = await tx.fetch(_NEXT_LOOK, {"busy": busy})
        return Claimed(claimed, next_look[0][0] if next_look else None, more)

    async def _take(self, tx: Transaction, names: Sequence[str], each: int) -> list[Delivery]:
        if not names:
            return []
        rows = await tx.fetch(
            _CLAIM,
            {
                "names": json_text(list(names)),
                "each": each,
                "new_owner": self.owner,
                "now": self.now,
            },
        )
        return [read_delivery(row) for row in rows]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Set a delivery due again that was claimed and never begun."""

    delivery: Delivery
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return subject(self.delivery)

    async def apply(self, tx: Transaction) -> None:
        """Take the claim back, as if it had not been made: the outcome is not unknown."""
        if await tx.execute(_GIVE_BACK, {**fence(self.delivery), "now": self.now}):
            if self.delivery.probe:
                await end_probe(tx, self.delivery.destination, self.now)
            else:
                await touch(tx, self.delivery.destination, self.now)
            await tx.notify("deliver", "")


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on with a delivery that was claimed before the lease was lost, if nobody has taken it."""

    delivery: Delivery
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return subject(self.delivery)

    async def apply(self, tx: Transaction) -> bool:
        """Return whether it is still this process that sends it."""
        return bool(await tx.execute(_KEEP, {**fence(self.delivery), "now": self.now}))
