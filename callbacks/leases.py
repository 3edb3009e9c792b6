"""Leases: which processes on a database are alive, and what each may still take for its own.

A process owns rows (operations that run in it, deliveries that it sends) only while its own row of
the `replica` table is alive, by the database's clock. It renews that row every quarter of the lease
and begins nothing new once 80 % of the lease has passed since the last renewal that it knows of, by
its own monotonic clock: then it stops before anybody else may take over. What it writes all the
same is fenced by what it writes to (an epoch, an attempt's number).
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from callbacks.database import (
    Database,
    DatabaseClosed,
    Statement,
    Transaction,
    database_now,
    table_of,
)
from callbacks.records import ReplicaRecord

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15.0

_HEARTBEATS_PER_LEASE = 4
_SAFE_SHARE = 0.8  # of the lease: the rest is for what has been begun to reach the database
_TRIES_PER_HEARTBEAT = 4
_EXACT_SECONDS = 0.5  # a slower answer does not say what the database's time is now
_FAR_AHEAD_MS = 253_402_300_799_000  # the end of the year 9999
_HOUR_MS = 3_600_000

_replica = table_of(ReplicaRecord)
_bind = sa.bindparam

_FORGET = Statement(sa.delete(_replica).where(_replica.c.id == _bind("id")))
_FORGET_OTHERS = Statement(sa.delete(_replica).where(_replica.c.id != _bind("id")))
_long_dead = (
    sa.select(_replica.c.id)
    .where(_replica.c.lease_until < database_now() - _bind("kept_ms"))
    # Several processes tidy up at once, in transactions that lock other rows too.
    .with_for_update(skip_locked=True)
    .cte("long_dead")
)
_FORGET_DEAD = Statement(sa.delete(_replica).where(_replica.c.id.in_(sa.select(_long_dead.c.id))))
_INSERT = Statement(
    sa.insert(_replica)
    .values(
        id=_bind("id"),
        lease_until=database_now() + _bind("lease_ms"),
        version=_bind("version"),
        started_at=database_now(),
    )
    .returning(database_now())
)
_INSERT_FOR_EVER = Statement(
    sa.insert(_replica).values(
        id=_bind("id"),
        lease_until=_FAR_AHEAD_MS,
        version=_bind("version"),
        started_at=database_now(),
    )
)
_RENEW = Statement(
    sa.update(_replica)
    # One that lapsed stays so, or it would vouch for rows that others have taken by now.
    .where(_replica.c.id == _bind("id"), _replica.c.lease_until > database_now())
    .values(lease_until=database_now() + _bind("lease_ms"))
    .returning(database_now())
)


def live_replicas() -> sa.Select[tuple[str]]:
    """Return a query for the ids of the processes whose lease lasts, for `owner.not_in(...)`."""
    return sa.select(_replica.c.id).where(_replica.c.lease_until > database_now())


class LeaseClock(Protocol):
    """The clock that a lease is measured by on this machine."""

    def monotonic(self) -> float:
        """Return seconds that pass also while the process is stopped."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970, UTC."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        """Return seconds that pass also while the process is stopped."""
        return time.monotonic()

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Lease:
    """The lease of this process on what it owns in the database.

    On a database that one process holds alone (SQLite) it never runs out, and opening it proves
    every earlier owner dead.

    Args:
        database: Where the leases are.
        seconds: How long a renewal lasts.
        version: Of the gateway, for operators.
        clock: The clock of this machine.
    """

    def __init__(
        self,
        database: Database,
        *,
        seconds: float = LEASE_SECONDS,
        version: str = "",
        clock: LeaseClock | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(6)}"
        self.seconds = seconds
        self._database = database
        self._version = version
        self._clock = clock or SystemClock()
        self._open = False
        self._lost = False
        self._term = 0
        self._regained_at: float | None = None  # monotonic: after it was lost
        self._sent_at = 0.0  # monotonic: when the last renewal that is confirmed was sent
        self._ahead_ms = 0.0  # of the monotonic clock: the database's time
        self._database_time_known = False
        self._renewal = asyncio.Event()  # set at the next renewal, and replaced by another
        self._on_lost: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Become a live replica; whatever the driver raises means that it is none."""
        await self._register()
        self._open = True
        if self._database.shared:
            self._tasks = [
                asyncio.create_task(self._keep_renewed(), name="lease renewal"),
                asyncio.create_task(self._watch(), name="lease watch"),
            ]

    async def close(self) -> None:
        """Give the lease up: whatever this process still owns may be taken at once."""
        if not self._open:
            return
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._database.write(_Leave(self.id))
        except DatabaseClosed:
            pass
        except Exception as error:  # noqa: BLE001  # whatever the driver raises
            logger.warning("cannot give the lease up; it runs out", extra={"error": repr(error)})

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have a function called each time that the lease ran out before it could be renewed.

        What this process owns may be another's by then: it drops it and writes nothing. The lease
        then goes on under the same id, once the database can be reached.
        """
        self._on_lost.append(callback)

    # ------------------------------------------------------------ asking

    def holds(self) -> bool:
        """Whether something may be begun that this process owns."""
        if not self._database.shared:
            return self._open
        passed = self._clock.monotonic() - self._sent_at
        return self._open and not self._lost and passed < self.seconds * _SAFE_SHARE

    async def held(self) -> None:
        """Wait until the lease holds."""
        while not self.holds():
            await self._renewal.wait()

    @property
    def term(self) -> int:
        """Names the time during which the lease has not been lost, for `kept_since`."""
        return self._term

    def kept_since(self, term: int) -> bool:
        """Whether the lease was not lost since `term` was asked for, nor is it lost now.

        What was claimed under a term is safe from others no longer than that: where the answer to
        the claim is heard of only later, another process may have taken it meanwhile.
        """
        return self._open and not self._lost and self._term == term

    def lost_recently(self) -> bool:
        """Whether the lease is lost, or was until less than a lease ago.

        A claim that was committed before may be heard of only now: it is to be confirmed.
        """
        if self._lost or self._regained_at is None:
            return self._lost
        return self._clock.monotonic() - self._regained_at < self.seconds

    def now_ms(self) -> int:
        """Return the database's time, which all its processes share, as far as it is known here.

        Milliseconds since 1970, UTC. What is due is decided by it: a replica whose own clock is
        wrong would otherwise take things too early, or leave them to nobody.
        """
        if not self._database_time_known:
            return self._clock.now_ms()
        return round(self._clock.monotonic() * 1000 + self._ahead_ms)

    # ------------------------------------------------------------ renewing

    async def _keep_renewed(self) -> None:
        pause = self.seconds / _HEARTBEATS_PER_LEASE
        while True:
            await self._clock.sleep(pause)
            try:
                await self._renew()
                pause = self.seconds / _HEARTBEATS_PER_LEASE
            except DatabaseClosed:
                return
            except Exception as error:  # noqa: BLE001  # whatever the driver raises
                logger.warning("cannot renew the lease", extra={"error": repr(error)})
                pause = self.seconds / _HEARTBEATS_PER_LEASE / _TRIES_PER_HEARTBEAT

    async def _renew(self) -> None:
        if self._lost:
            await self._register()
            logger.info("the lease goes on", extra={"replica": self.id})
            return
        # Before it is sent: how long it then takes to reach the database is not known here.
        sent_at = self._clock.monotonic()
        now = await self._database.write(_Renew(self.id, self._lease_ms))
        if now is None or self._ran_out():
            # An answer that comes after the whole lease says nothing about the time between.
            self._lose()
            await self._register()
            return
        self._confirmed(sent_at, now)

    async def _register(self) -> None:
        sent_at = self._clock.monotonic()
        lease_ms = self._lease_ms if self._database.shared else None
        now = await self._database.write(_Register(self.id, self._version, lease_ms))
        self._confirmed(sent_at, now)

    def _confirmed(self, sent_at: float, database_ms: int | None) -> None:
        answered_at = self._clock.monotonic()
        if self._lost:
            self._lost = False
            self._term += 1
            self._regained_at = answered_at
        self._sent_at = sent_at
        exact = answered_at - sent_at <= _EXACT_SECONDS
        if database_ms is not None and (exact or not self._database_time_known):
            self._ahead_ms = database_ms - (sent_at + answered_at) / 2 * 1000
            self._database_time_known = True
        renewal, self._renewal = self._renewal, asyncio.Event()
        renewal.set()

    async def _watch(self) -> None:
        while True:
            left = self._sent_at + self.seconds - self._clock.monotonic()
            if left > 0:
                await self._clock.sleep(left)
                continue
            self._lose()
            await self._renewal.wait()

    def _ran_out(self) -> bool:
        return self._clock.monotonic() - self._sent_at >= self.seconds

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._term += 1
        logger.error("the lease ran out: others may take over", extra={"replica": self.id})
        for callback in self._on_lost:
            try:
                callback()
            except Exception:
                logger.exception("dropping what is owned broke")

    @property
    def _lease_ms(self) -> int:
        return round(self.seconds * 1000)


@dataclass(frozen=True, slots=True)
class _Register:
    """Become a live replica, anew under the same id after a lease was lost."""

    id: str
    version: str
    lease_ms: int | None  # None: this process holds the database alone

    @property
    def subject(self) -> str | None:
        """The replica."""
        return f"replica/{self.id}"

    async def apply(self, tx: Transaction) -> int | None:
        """Return the database's time, where there are several processes to share it."""
        if self.lease_ms is None:
            await tx.execute(_FORGET_OTHERS, {"id": self.id})
            await tx.execute(_FORGET, {"id": self.id})
            await tx.execute(_INSERT_FOR_EVER, {"id": self.id, "version": self.version})
            return None
        # No row vouches for a dead owner, so nothing is lost with it; kept a while for operators.
        await tx.execute(_FORGET_DEAD, {"kept_ms": _HOUR_MS})
        await tx.execute(_FORGET, {"id": self.id})
        values = {"id": self.id, "version": self.version, "lease_ms": self.lease_ms}
        return int((await tx.fetch(_INSERT, values))[0][0])


@dataclass(frozen=True, slots=True)
class _Renew:
    """Renew a lease that has not run out."""

    id: str
    lease_ms: int

    @property
    def subject(self) -> str | None:
        """The replica."""
        return f"replica/{self.id}"

    async def apply(self, tx: Transaction) -> int | None:
        """Return the database's time, or None where the lease ran out."""
        rows = await tx.fetch(_RENEW, {"id": self.id, "lease_ms": self.lease_ms})
        return int(rows[0][0]) if rows else None


@dataclass(frozen=True, slots=True)
class _Leave:
    """Let others take over at once."""

    id: str

    @property
    def subject(self) -> str | None:
        """The replica."""
        return f"replica/{self.id}"

    async def apply(self, tx: Transaction) -> None:
        """Drop the replica."""
        await tx.execute(_FORGET, {"id": self.id})
