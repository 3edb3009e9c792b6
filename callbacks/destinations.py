"""The destinations that deliveries wait for: when to look at each.

A destination has a row from the first time that a delivery to it has to wait. Its `wake_at` is kept
so that looking for what is due costs the same however many deliveries wait behind a dead
destination: whatever makes a delivery due lowers it (`touch`), and only who holds the row's lock
raises it again (`look_again`).

These rows are the one thing that many writes of all processes change. Touches come last in a
transaction and in the order of names; what locks them at another moment is a transaction of its own
(`ALONE`), or two processes would wait for each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.database import (
    ALONE,
    Row,
    Statement,
    Transaction,
    greatest,
    least,
    listed,
    table_of,
)
from callbacks.records import CallbackRecord, CallbackState, DestinationRecord
from nexus_spec.json_text import json_text

CHANNEL = "destination"
"""What processes are notified on of a destination that is held, or no longer; its name follows."""

_FOR_EVER = 2**62

destination = table_of(DestinationRecord)
_callback = table_of(CallbackRecord)
_bind = sa.bindparam

_earliest_due = (
    sa.select(sa.func.min(_callback.c.next_at))
    .where(
        _callback.c.destination == destination.c.name,
        _callback.c.state == CallbackState.DUE.value,
    )
    .correlate(destination)
    .scalar_subquery()
)
_holds = [
    sa.func.coalesce(column, 0)
    for column in (destination.c.open_until, destination.c.probe_until, destination.c.not_before)
]
# Large where nothing is due or may be sent, so that it can be compared.
_next_look = sa.case(
    (destination.c.disabled_at.is_not(None), _FOR_EVER),
    else_=greatest(sa.func.coalesce(_earliest_due, _FOR_EVER), *_holds),
)


def _or_null(at: Any) -> Any:
    return sa.func.nullif(at, _FOR_EVER)


_KNOW = Statement(
    sa.insert(destination).values(
        name=_bind("name"),
        failures=0,
        openings=0,
        changed_at=_bind("now"),
    ),
    or_ignore=True,
    last=True,
)
_TOUCH = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"))
    .values(
        # The row's own value counts as it is at this moment, also where another process changed
        # it meanwhile; the rest may be older, and then others have touched it, or will.
        wake_at=_or_null(least(sa.func.coalesce(destination.c.wake_at, _FOR_EVER), _next_look))
    ),
    idempotent=True,
    last=True,
    correlated=True,
)
_LOOK_AGAIN = Statement(
    sa.update(destination)
    .where(destination.c.name.in_(listed("names")))
    # Not before this moment: who waits longest is looked at first, and all get their turn.
    .values(wake_at=_or_null(greatest(_next_look, _bind("now", type_=sa.BigInteger))))
)

_TRY_SOON = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"), destination.c.open_until > _bind("now"))
    .values(open_until=_bind("now"), changed_at=_bind("now")),
    last=True,
)
_FORGET_IDLE = Statement(
    sa.delete(destination)
    .where(
        destination.c.wake_at.is_(None),
        destination.c.disabled_at.is_(None),
        destination.c.changed_at < _bind("before"),
    )
    .returning(destination.c.name)
)
_REPAIR = Statement(
    sa.update(destination)
    .where(
        sa.func.coalesce(destination.c.wake_at, _FOR_EVER)
        > greatest(_next_look, _bind("now", type_=sa.BigInteger))
    )
    .values(wake_at=_or_null(_next_look))
    .returning(destination.c.name)
)
_END_PROBE = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"), destination.c.probe_until.is_not(None))
    .values(probe_until=None),
    last=True,
)


async def touch(tx: Transaction, name: str, now: int) -> None:
    """See to it that a delivery of this destination is looked for when it is due.

    In the transaction that made the delivery due, and after that.
    """
    if not await tx.execute(_TOUCH, {"name": name}):
        await know(tx, name, now)
        await tx.execute(_TOUCH, {"name": name})


async def try_soon(tx: Transaction, name: str, now: int) -> None:
    """Let an open breaker have its probe at once, where it does not have one already."""
    await tx.execute(_TRY_SOON, {"name": name, "now": now})
    await touch(tx, name, now)


async def end_probe(tx: Transaction, name: str, now: int) -> None:
    """Wait no longer for the probe of a destination."""
    await tx.execute(_END_PROBE, {"name": name})
    await touch(tx, name, now)


async def know(tx: Transaction, name: str, now: int) -> None:
    """Make the row of a destination, where it has none."""
    await tx.execute(_KNOW, {"name": name, "now": now})


async def look_again(tx: Transaction, names: Iterable[str], now: int) -> None:
    """Set when destinations, whose rows this transaction has locked, are to be looked at next."""
    await tx.execute(_LOOK_AGAIN, {"names": json_text(list(names)), "now": now})


def names_of(rows: Sequence[Row]) -> list[str]:
    """Return the distinct names in the first column of rows."""
    return sorted({str(row[0]) for row in rows})


@dataclass(frozen=True, slots=True)
class EndProbe:
    """Let another delivery be the probe: this one was not sent, or came to nothing."""

    name: str
    now: int

    @property
    def subject(self) -> str | None:
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> None:
        """Have the destination looked at again."""
        await end_probe(tx, self.name, self.now)
        await tx.notify("deliver", "")


@dataclass(frozen=True, slots=True)
class ForgetIdle:
    """Delete what is known of destinations that nothing waits for, without news for long."""

    before: int

    @property
    def subject(self) -> str | None:
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> list[str]:
        """Return their names."""
        names = names_of(await tx.fetch(_FORGET_IDLE, {"before": self.before}))
        for name in names:
            await tx.notify(CHANNEL, name)
        return names


@dataclass(frozen=True, slots=True)
class Repair:
    """Look for what nobody would look for in time: there is nothing, unless the code is wrong."""

    now: int

    @property
    def subject(self) -> str | None:
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> list[str]:
        """Return the destinations that would have been forgotten."""
        names = names_of(await tx.fetch(_REPAIR, {"now": self.now}))
        if names:
            await tx.notify("deliver", "")
        return names
