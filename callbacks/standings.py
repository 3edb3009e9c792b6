"""How destinations stand: their breakers, the pauses they asked for, what operators said."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.breaker import Breaker, BreakerPolicy, Outcomes
from callbacks.database import ALONE, Row, Statement, Transaction, table_of
from callbacks.destinations import CHANNEL, destination, know, look_again
from callbacks.records import CallbackRecord, CallbackState

_callback = table_of(CallbackRecord)
_bind = sa.bindparam

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
        disabled_at=_bind("new_disabled_at"),
        changed_at=_bind("now"),
    )
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
        """None other may be in its transaction."""
        return ALONE

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
        await _set(tx, after, self.now)
        if (after.holds(self.now), after.is_clean) != (known.holds(self.now), known.is_clean):
            await _tell(tx, self.name)
        return after


@dataclass(frozen=True, slots=True)
class Disable:
    """Hold the deliveries to a destination back until it is enabled."""

    name: str
    now: int

    @property
    def subject(self) -> str | None:
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> Standing:
        """Return what is known of the destination from now on."""
        known = await locked(tx, self.name, self.now)
        if known.disabled_at is not None:
            return known
        after = Standing(self.name, known.breaker, known.not_before, self.now)
        await _set(tx, after, self.now)
        await _tell(tx, self.name)
        return after


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
        """None other may be in its transaction."""
        return ALONE

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
        """None other may be in its transaction."""
        return ALONE

    async def apply(self, tx: Transaction) -> Standing:
        """Return what is known of the destination from now on."""
        await locked(tx, self.name, self.now)
        after = Standing(self.name)
        await _set(tx, after, self.now)
        await _tell(tx, self.name)
        return after


async def _set(tx: Transaction, standing: Standing, now: int) -> None:
    """Write down how a destination, whose row this transaction has locked, stands from now on."""
    breaker = standing.breaker
    values: dict[str, Any] = {
        "name": standing.name,
        "new_failures": breaker.failures,
        "new_openings": breaker.openings,
        "new_open_until": breaker.open_until,
        "new_probe_until": breaker.probe_until,
        "new_not_before": standing.not_before,
        "new_disabled_at": standing.disabled_at,
        "now": now,
    }
    await tx.execute(_SET_STANDING, values)
    await look_again(tx, [standing.name], now)


async def _tell(tx: Transaction, name: str) -> None:
    """Have all processes hear of it, and look for what may be sent now."""
    await tx.notify(CHANNEL, name)
    await tx.notify("deliver", "")
