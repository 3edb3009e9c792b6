"""The destinations that deliveries wait for: when to look at each, and what holds it.

A destination has a row from the first time that a delivery to it has to wait. Its `wake_at` is kept
so that looking for what is due costs the same however many deliveries wait behind a dead
destination: whatever makes a delivery due lowers it (`touch`), and only who holds the row's lock
raises it again (`look_again`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.breaker import Breaker, BreakerPolicy, Outcomes
from callbacks.database import (
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
)
_LOOK_AGAIN = Statement(
    sa.update(destination)
    .where(destination.c.name.in_(listed("names")))
    # Not before this moment: who waits longest is looked at first, and all get their turn.
    .values(wake_at=_or_null(greatest(_next_look, _bind("now", type_=sa.BigInteger))))
)

_COLUMNS = (
    destination.c.name,
    destination.c.failures,
    destination.c.openings,
    destination.c.open_until,
    destination.c.probe_until,
    destination.c.not_before,
    destination.c.disabled_at,
)
_LOCK = Statement(
    sa.select(*_COLUMNS).where(destination.c.name == _bind("name")).with_for_update(key_share=True)
)
STANDING_OF = Statement(sa.select(*_COLUMNS).where(destination.c.name == _bind("name")))
EVERY_STANDING = Statement(sa.select(*_COLUMNS))
ALL_STANDINGS = Statement(
    sa.select(*_COLUMNS).where(
        sa.or_(
            destination.c.failures > 0,
            destination.c.open_until.is_not(None),
            destination.c.disabled_at.is_not(None),
            destination.c.not_before > _bind("now"),
        )
    )
)
_SET_STANDING = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"))
    .values(
        failures=_bind("new_failures"),
        openings=_bind("new_openings"),
        open_until=_bind("new_open_until"),
        probe_until=_bind("new_probe_until"),
        not_before=_bind("new_not_before"),
        changed_at=_bind("now"),
    )
)
_TRY_SOON = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"), destination.c.open_until > _bind("now"))
    .values(open_until=_bind("now"), changed_at=_bind("now"))
)
_SET_DISABLED = Statement(
    sa.update(destination)
    .where(destination.c.name == _bind("name"))
    .values(disabled_at=_bind("new_disabled_at"), changed_at=_bind("now"))
)
_MAY_WAIT_LONGER = Statement(
    sa.update(_callback)
    .where(
        _callback.c.id.in_(
            sa.select(_callback.c.id)
            .where(
                _callback.c.destination == _bind("name"),
                _callback.c.state == CallbackState.DUE.value,
                _callback.c.deadline_at < _bind("new_deadline_at"),
            )
            .limit(_bind("most"))
        ),
        _callback.c.state == CallbackState.DUE.value,
    )
    .values(deadline_at=_bind("new_deadline_at"))
)
_FORGET_IDLE = Statement(
    sa.delete(destination).where(
        destination.c.wake_at.is_(None),
        destination.c.failures == 0,
        destination.c.open_until.is_(None),
        destination.c.disabled_at.is_(None),
        destination.c.changed_at < _bind("before"),
    )
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a destination. Times are milliseconds since 1970.

    Attributes:
        name: `scheme://host:port`.
        breaker: its circuit breaker.
        not_before: it asked to be left alone until then.
        disabled_at: since when an operator holds its deliveries back.
    """

    name: str
    breaker: Breaker = Breaker()  # noqa: RUF009  # it is frozen
    not_before: int | None = None
    disabled_at: int | None = None

    def holds(self, now: int) -> bool:
        """Whether deliveries wait; behind an open breaker all but the probes, also when it ends."""
        return self.disabled_at is not None or self.breaker.is_open or (self.not_before or 0) > now

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to remember of it but perhaps a wait that ends by itself."""
        return self.disabled_at is None and self.breaker == Breaker()


def read_standing(row: Row) -> Standing:
    """Turn a row of `STANDING_OF` or `ALL_STANDINGS` into its value."""
    name, failures, openings, open_until, probe_until, not_before, disabled_at = row
    breaker = Breaker(
        failures=failures, openings=openings, open_until=open_until, probe_until=probe_until
    )
    return Standing(name, breaker, not_before, disabled_at)


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


async def know(tx: Transaction, name: str, now: int) -> None:
    """Make the row of a destination, where it has none."""
    await tx.execute(_KNOW, {"name": name, "now": now})


async def look_again(tx: Transaction, names: Iterable[str], now: int) -> None:
    """Set when destinations, whose rows this transaction has locked, are to be looked at next."""
    await tx.execute(_LOOK_AGAIN, {"names": json_text(list(names)), "now": now})


async def locked(tx: Transaction, name: str, now: int) -> Standing:
    """Lock the row of a destination, made where there is none, and return what it says."""
    while not (rows := await tx.fetch(_LOCK, {"name": name})):
        await know(tx, name, now)
    return read_standing(rows[0])


@dataclass(frozen=True, slots=True)
class Report:
    """Tell all processes what attempts to a destination came to.

    Not fenced: what came of an attempt is true of the destination, whoever has the delivery by now.
    """

    name: str
    outcomes: Outcomes
    not_before: int | None
    now: int
    policy: BreakerPolicy
    random: float

    @property
    def subject(self) -> str | None:
        """The destination."""
        return _subject(self.name)

    async def apply(self, tx: Transaction) -> Standing:
        """Return what is known of the destination from now on."""
        known = await locked(tx, self.name, self.now)
        breaker = known.breaker.after(
            self.outcomes, now=self.now, policy=self.policy, random=self.random
        )
        not_before = max(known.not_before or 0, self.not_before or 0)
        after = Standing(
            self.name, breaker, not_before if not_before > self.now else None, known.disabled_at
        )
        if after == known:
            return known
        await tx.execute(_SET_STANDING, {**_values(after), "now": self.now})
        await look_again(tx, [self.name], self.now)
        if (after.holds(self.now), after.is_clean) != (known.holds(self.now), known.is_clean):
            await tx.notify(CHANNEL, self.name)
            await tx.notify("deliver", "")
        return after


@dataclass(frozen=True, slots=True)
class Disable:
    """Hold the deliveries to a destination back until it is enabled."""

    name: str
    now: int

    @property
    def subject(self) -> str | None:
        """The destination."""
        return _subject(self.name)

    async def apply(self, tx: Transaction) -> Standing:
        """Return what is known of the destination from now on."""
        known = await locked(tx, self.name, self.now)
        if known.disabled_at is not None:
            return known
        values = {"name": self.name, "new_disabled_at": self.now, "now": self.now}
        await tx.execute(_SET_DISABLED, values)
        await look_again(tx, [self.name], self.now)
        await tx.notify(CHANNEL, self.name)
        return Standing(self.name, known.breaker, known.not_before, self.now)


@dataclass(frozen=True, slots=True)
class Postpone:
    """Let deliveries that waited behind a disabled destination be tried as long as new ones.

    To be repeated until it finds no more, before the destination is enabled.
    """

    name: str
    deadline_at: int
    most: int

    @property
    def subject(self) -> str | None:
        """The destination."""
        return _subject(self.name)

    async def apply(self, tx: Transaction) -> int:
        """Return how many there were, at most as many as were asked for."""
        return await tx.execute(
            _MAY_WAIT_LONGER,
            {"name": self.name, "new_deadline_at": self.deadline_at, "most": self.most},
        )


@dataclass(frozen=True, slots=True)
class Enable:
    """Deliver to a destination again, whatever its breaker says."""

    name: str
    now: int

    @property
    def subject(self) -> str | None:
        """The destination."""
        return _subject(self.name)

    async def apply(self, tx: Transaction) -> Standing:
        """Return what is known of the destination from now on."""
        await locked(tx, self.name, self.now)
        after = Standing(self.name)
        await tx.execute(_SET_STANDING, {**_values(after), "now": self.now})
        await tx.execute(
            _SET_DISABLED, {"name": self.name, "new_disabled_at": None, "now": self.now}
        )
        await look_again(tx, [self.name], self.now)
        await tx.notify(CHANNEL, self.name)
        await tx.notify("deliver", "")
        return after


@dataclass(frozen=True, slots=True)
class ForgetIdle:
    """Delete what is known of destinations that have made no trouble for long."""

    before: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> int:
        """Return how many there were."""
        return await tx.execute(_FORGET_IDLE, {"before": self.before})


def _subject(name: str) -> str:
    return f"destination/{name}"


def _values(standing: Standing) -> dict[str, Any]:
    breaker = standing.breaker
    return {
        "name": standing.name,
        "new_failures": breaker.failures,
        "new_openings": breaker.openings,
        "new_open_until": breaker.open_until,
        "new_probe_until": breaker.probe_until,
        "new_not_before": standing.not_before,
    }


def names_of(rows: Sequence[Row]) -> list[str]:
    """Return the distinct names in the first column of rows."""
    return sorted({str(row[0]) for row in rows})
