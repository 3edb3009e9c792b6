"""Completions that were given up: kept with all that is known of them, told of, and replayed."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction, listed, table_of
from callbacks.destinations import destination, touch, try_soon
from callbacks.records import BEGUN_ANEW, CallbackRecord, CallbackState
from nexus_spec import format_rfc3339
from nexus_spec.json_text import json_text

NOTICE_TYPE = "callback.failed"
TOO_OLD_WHILE_HELD = "too old: its destination did not answer for so long"

_callback = table_of(CallbackRecord)
_bind = sa.bindparam


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A completion that was given up, for the notice to the operator."""

    id: int
    token: str
    slot: int
    destination: str
    attempts: int
    reason: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Where the operator is told of dead letters: a webhook of their own, delivered like others.

    Attributes:
        url: where it is posted to.
        destination: the same as `scheme://host:port`.
        max_age_ms: how long its delivery is tried.
    """

    url: str
    destination: str
    max_age_ms: int


_ADD_NOTICE = Statement(
    sa.insert(_callback).values(
        token=_bind("token"),
        slot=_bind("slot"),
        registration_hash=_bind("hash"),
        destination=_bind("destination"),
        url=_bind("url"),
        headers='[["Content-Type", "application/json"]]',
        body=_bind("body"),
        state=CallbackState.DUE.value,
        attempt=0,
        retries=0,
        outcome_unknown=0,
        next_at=_bind("now"),
        deadline_at=_bind("deadline_at"),
        created_at=_bind("now"),
    ),
    or_ignore=True,
)
_RENEW_NOTICE = Statement(
    sa.update(_callback)
    .where(_callback.c.token == _bind("token"), _callback.c.slot == _bind("slot"))
    .values(
        destination=_bind("destination"),
        url=_bind("url"),
        body=_bind("body"),
        state=CallbackState.DUE.value,
        owner=None,
        retries=BEGUN_ANEW,
        outcome_unknown=0,
        reason=None,
        next_at=_bind("now"),
        deadline_at=_bind("deadline_at"),
        closed_at=None,
    )
)


async def tell_operator(
    tx: Transaction, letter: DeadLetter, notice: Notice | None, now: int
) -> None:
    """Queue a notice of a dead letter, in the transaction that gave it up.

    None of a notice that cannot be delivered itself.
    """
    if notice is None or letter.slot < 0:
        return
    values = {
        "token": letter.token,
        "slot": -1 - letter.slot,
        "destination": notice.destination,
        "url": notice.url,
        "body": _body(letter, now),
        "hash": b"",  # nobody registered it
        "now": now,
        "deadline_at": now + notice.max_age_ms,
    }
    # A completion that was replayed and given up again is worth another one.
    if not await tx.execute(_ADD_NOTICE, values):
        await tx.execute(_RENEW_NOTICE, values)
    await touch(tx, notice.destination, now)
    await tx.notify("deliver", "")


def _body(letter: DeadLetter, now: int) -> bytes:
    # Neither URL nor headers, which may hold secrets of the caller's.
    document = {
        "type": NOTICE_TYPE,
        "timestamp": _moment(now),
        "data": {
            "callback_id": letter.id,
            "operation_token": letter.token,
            "destination": letter.destination,
            "attempts": letter.attempts,
            "reason": letter.reason,
            "created_at": _moment(letter.created_at),
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _moment(ms: int) -> str:
    return format_rfc3339(datetime.fromtimestamp(ms / 1000, UTC))


_overdue = (
    sa.select(_callback.c.id)
    .where(
        _callback.c.state == CallbackState.DUE.value,
        _callback.c.deadline_at < _bind("now"),
        _callback.c.destination.in_(
            # Elsewhere an attempt comes soon and decides; a disabled one keeps its deliveries.
            sa.select(destination.c.name).where(
                destination.c.open_until.is_not(None), destination.c.disabled_at.is_(None)
            )
        ),
    )
    .limit(_bind("most"))
    .with_for_update(key_share=True, skip_locked=True)
    .cte("overdue")
)
_EXPIRE = Statement(
    sa.update(_callback)
    .where(_callback.c.id.in_(sa.select(_overdue.c.id)))
    .values(
        state=CallbackState.FAILED.value,
        closed_at=_bind("now"),
        next_at=None,
        reason=TOO_OLD_WHILE_HELD,
    )
    .returning(
        _callback.c.id,
        _callback.c.token,
        _callback.c.slot,
        _callback.c.destination,
        _callback.c.attempt,
        _callback.c.reason,
        _callback.c.created_at,
    )
)


@dataclass(frozen=True, slots=True)
class Expire:
    """Give up what became too old behind an open breaker, where it costs no attempt to wait."""

    now: int
    most: int
    notice: Notice | None

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> list[DeadLetter]:
        """Return what was given up, at most so many."""
        rows = await tx.fetch(_EXPIRE, {"now": self.now, "most": self.most})
        letters = [DeadLetter(*row) for row in rows]
        for letter in letters:
            await tell_operator(tx, letter, self.notice, self.now)
        return letters


_ids = _callback.c.id.in_(
    sa.select(sa.cast(listed("ids").subquery("listed").c.value, sa.BigInteger))
)
_is_over = _callback.c.state.in_(
    # Literals: an IN list of values would be expanded anew at each run.
    [sa.literal_column(state) for state in ("'failed'", "'delivered'")]
)
_REPLAYABLE = Statement(
    sa.select(_callback.c.id, _callback.c.destination)
    .where(_ids, _is_over)
    .order_by(_callback.c.id)
    .with_for_update(key_share=True)
)
_REPLAY = Statement(
    sa.update(_callback)
    .where(_ids, _is_over)
    .values(
        state=CallbackState.DUE.value,
        owner=None,
        retries=BEGUN_ANEW,
        next_at=_bind("now"),
        deadline_at=_bind("new_deadline_at"),
        closed_at=None,
    )
)


@dataclass(frozen=True, slots=True)
class Replay:
    """Deliver again what was given up, or what arrived, from the start of the schedule.

    Attempts are counted on, and what may have arrived before may still have done so.

    Args:
        ids: of the callbacks; those that are neither are left as they are.
        now: Milliseconds since 1970.
        max_age_ms: for how long delivery to a destination is tried.
    """

    ids: Sequence[int]
    now: int
    max_age_ms: Callable[[str], int]

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> list[int]:
        """Return the ids of those that will be delivered again."""
        rows = await tx.fetch(_REPLAYABLE, {"ids": json_text(list(map(str, self.ids)))})
        by_destination: defaultdict[str, list[str]] = defaultdict(list)
        for row_id, name in rows:
            by_destination[name].append(str(row_id))
        for name, ids in sorted(by_destination.items()):
            values: dict[str, Any] = {
                "ids": json_text(ids),
                "now": self.now,
                "new_deadline_at": self.now + self.max_age_ms(name),
            }
            await tx.execute(_REPLAY, values)
            # Whoever replays knows that something was mended.
            await try_soon(tx, name, self.now)
        if rows:
            await tx.notify("deliver", "")
        return [row_id for row_id, _ in rows]
