"""The outbox: what is to be delivered, written in the transactions that decide it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from callbacks.database import Row, Statement, Transaction, listed, table_of
from callbacks.records import CallbackRecord, CallbackState, DeliveryAttemptRecord
from nexus_spec.json_text import json_text

_callback = table_of(CallbackRecord)
_attempt = table_of(DeliveryAttemptRecord)
_bind = sa.bindparam

SLOTS_PER_OPERATION = 10


@dataclass(frozen=True)
class Registration:
    """Where a caller wants a completion sent, checked by the egress guard."""

    url: str
    destination: str  # scheme://host:port
    headers: Mapping[str, str]  # the caller's callback headers, prefix stripped
    hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        identity = json_text([self.url, sorted(self.headers.items())]).encode()
        object.__setattr__(self, "hash", hashlib.sha256(identity).digest())


@dataclass(frozen=True, slots=True)
class Delivery:
    """One frozen completion on its way to one URL."""

    id: int
    token: str
    url: str
    destination: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    attempt: int  # the attempt under way, from 1
    outcome_unknown: bool  # an earlier attempt may have arrived
    deadline_at: int


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


# ---------------------------------------------------------------- within the engine's transactions

_REGISTER = Statement(
    sa.insert(_callback).values(
        token=_bind("token"),
        slot=_bind("slot"),
        registration_hash=_bind("registration_hash"),
        destination=_bind("destination"),
        url=_bind("url"),
        headers=_bind("headers"),
        state=CallbackState.REGISTERED.value,
        attempt=0,
        outcome_unknown=0,
        created_at=_bind("now"),
    )
)
_HASHES = Statement(
    sa.select(_callback.c.registration_hash).where(_callback.c.token == _bind("token"))
)
_REGISTERED = Statement(
    sa.select(_callback.c.id, _callback.c.url, _callback.c.destination, _callback.c.headers).where(
        _callback.c.token == _bind("token"),
        _callback.c.state == CallbackState.REGISTERED.value,
    )
)
_FREEZE = Statement(
    sa.update(_callback)
    .where(_callback.c.id == _bind("row_id"))
    .values(
        state=_bind("new_state"),
        headers=_bind("new_headers"),
        body=_bind("new_body"),
        attempt=_bind("new_attempt"),
        next_at=_bind("now"),
        deadline_at=_bind("new_deadline_at"),
    )
)

_FORGET = Statement(sa.delete(_callback).where(_callback.c.token == _bind("token")))


async def forget(tx: Transaction, token: str) -> None:
    """Drop the callbacks of an operation whose start is taken back."""
    await tx.execute(_FORGET, {"token": token})


async def register(tx: Transaction, token: str, registration: Registration, now: int) -> bool:
    """Add a slot for a callback; return False where the operation has it already.

    Raises:
        ValueError: The operation has as many callbacks as it may have.
    """
    known = [row[0] for row in await tx.fetch(_HASHES, {"token": token})]
    if registration.hash in known:
        return False
    if len(known) >= SLOTS_PER_OPERATION:
        raise ValueError(f"an operation has at most {SLOTS_PER_OPERATION} callbacks")
    await register_first(tx, token, registration, now, slot=len(known))
    return True


async def register_first(
    tx: Transaction, token: str, registration: Registration, now: int, *, slot: int = 0
) -> None:
    """Add the callback of an operation that was inserted just now."""
    await tx.execute(
        _REGISTER,
        {
            "token": token,
            "slot": slot,
            "registration_hash": registration.hash,
            "destination": registration.destination,
            "url": registration.url,
            "headers": json_text(list(registration.headers.items())),
            "now": now,
        },
    )


async def freeze(
    tx: Transaction,
    token: str,
    completion: tuple[Sequence[tuple[str, str]], bytes],
    *,
    now: int,
    max_age_ms: int,
    claim: bool,
) -> list[Delivery]:
    """Freeze a completion into every registered callback of an operation that ends.

    Args:
        tx: The transaction that ends the operation, before it does so.
        token: The operation.
        completion: Headers and body as they go out, without the callers' own headers.
        now: Milliseconds since 1970.
        max_age_ms: How long delivery is tried.
        claim: Whether attempt 1 follows at once, from memory. The rows are then born in flight,
            so that a crash leaves an attempt of unknown outcome behind; otherwise they are due.
    """
    headers, body = completion
    deliveries = []
    for row_id, url, destination, own in await tx.fetch(_REGISTERED, {"token": token}):
        all_headers = [(str(n), str(v)) for n, v in json.loads(own)]
        all_headers += headers
        await tx.execute(
            _FREEZE,
            {
                "row_id": row_id,
                "new_state": CallbackState.IN_FLIGHT if claim else CallbackState.DUE,
                "new_headers": json_text(all_headers),
                "new_body": body,
                "new_attempt": 1 if claim else 0,
                "now": now,
                "new_deadline_at": now + max_age_ms,
            },
        )
        if claim:
            deliveries.append(
                Delivery(
                    id=row_id,
                    token=token,
                    url=url,
                    destination=destination,
                    headers=all_headers,
                    body=body,
                    attempt=1,
                    outcome_unknown=False,
                    deadline_at=now + max_age_ms,
                )
            )
    return deliveries


# ---------------------------------------------------------------- delivery's own writes

_CLOSE = Statement(
    sa.update(_callback)
    .where(_callback.c.id == _bind("row_id"))
    .values(state=_bind("new_state"), closed_at=_bind("now"), next_at=None)
)
_RETRY = Statement(
    sa.update(_callback)
    .where(_callback.c.id == _bind("row_id"))
    .values(
        state=CallbackState.DUE.value,
        next_at=_bind("new_next_at"),
        outcome_unknown=_bind("new_unknown"),
    )
)
_GIVE_BACK = Statement(
    sa.update(_callback)
    .where(_callback.c.id == _bind("row_id"))
    .values(
        state=CallbackState.DUE.value,
        attempt=_callback.c.attempt - 1,
        next_at=_bind("now"),
    )
)
_ADD_ATTEMPT = Statement(
    sa.insert(_attempt).values(
        {column: _bind(column) for column in _attempt.columns.keys()}  # noqa: SIM118  # no Mapping
    ),
    or_ignore=True,  # a commit that failed may have been one all the same
)
_DUE = Statement(
    sa.select(
        _callback.c.id,
        _callback.c.token,
        _callback.c.url,
        _callback.c.destination,
        _callback.c.headers,
        _callback.c.body,
        _callback.c.attempt,
        _callback.c.outcome_unknown,
        _callback.c.deadline_at,
    )
    .where(
        _callback.c.state == CallbackState.DUE.value,
        _callback.c.next_at <= _bind("now"),
        _callback.c.destination.not_in(listed("busy")),
    )
    .order_by(_callback.c.next_at)
    .limit(_bind("most"))
)
_CLAIM = Statement(
    sa.update(_callback)
    .where(_callback.c.id == _bind("row_id"))
    .values(state=CallbackState.IN_FLIGHT.value, attempt=_bind("new_attempt"))
)
_NEXT_DUE = Statement(
    sa.select(sa.func.min(_callback.c.next_at)).where(
        _callback.c.state == CallbackState.DUE.value,
        _callback.c.destination.not_in(listed("busy")),
    )
)
_RECOVER = Statement(
    sa.update(_callback)
    .where(_callback.c.state == CallbackState.IN_FLIGHT.value)
    .values(state=CallbackState.DUE.value, outcome_unknown=1, next_at=_bind("now"))
)


@dataclass(frozen=True, slots=True)
class Close:
    """End a delivery: it arrived, or it never will."""

    id: int
    state: CallbackState
    now: int
    attempt: Attempt | None

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return f"callback/{self.id}"

    async def apply(self, tx: Transaction) -> None:
        """Write the outcome and, where one is kept, the attempt."""
        await tx.execute(_CLOSE, {"row_id": self.id, "new_state": self.state, "now": self.now})
        if self.attempt is not None:
            await _add_attempt(tx, self.id, self.attempt)


@dataclass(frozen=True, slots=True)
class Retry:
    """Set a delivery due again."""

    id: int
    next_at: int
    outcome_unknown: bool
    attempt: Attempt

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return f"callback/{self.id}"

    async def apply(self, tx: Transaction) -> None:
        """Write the attempt and when the next one is."""
        await tx.execute(
            _RETRY,
            {
                "row_id": self.id,
                "new_next_at": self.next_at,
                "new_unknown": int(self.outcome_unknown),
            },
        )
        await _add_attempt(tx, self.id, self.attempt)


@dataclass(frozen=True, slots=True)
class ClaimDue:
    """Take the deliveries that are due, but none of the busy destinations."""

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
        claimed = []
        for row in await tx.fetch(_DUE, {"now": self.now, "most": self.most, "busy": busy}):
            delivery = _delivery(row)
            await tx.execute(_CLAIM, {"row_id": delivery.id, "new_attempt": delivery.attempt})
            claimed.append(delivery)
        return claimed, (await tx.fetch(_NEXT_DUE, {"busy": busy}))[0][0]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Set a delivery due again that was claimed and never begun."""

    id: int
    now: int

    @property
    def subject(self) -> str | None:
        """The delivery."""
        return f"callback/{self.id}"

    async def apply(self, tx: Transaction) -> None:
        """Take the claim back, as if it had not been made: the outcome is not unknown."""
        await tx.execute(_GIVE_BACK, {"row_id": self.id, "now": self.now})


@dataclass(frozen=True, slots=True)
class RecoverInFlight:
    """Make the attempts of a process that is gone due again, their outcome unknown."""

    now: int

    @property
    def subject(self) -> str | None:
        """Nothing in particular."""
        return None

    async def apply(self, tx: Transaction) -> int:
        """Return how many there were."""
        return await tx.execute(_RECOVER, {"now": self.now})


def _delivery(row: Row) -> Delivery:
    row_id, token, url, destination, headers, body, attempt, unknown, deadline_at = row
    return Delivery(
        id=row_id,
        token=token,
        url=url,
        destination=destination,
        headers=[(str(n), str(v)) for n, v in json.loads(headers)],
        body=body,
        attempt=attempt + 1,
        outcome_unknown=bool(unknown),
        deadline_at=deadline_at,
    )


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


# ---------------------------------------------------------------- reading, for operators

CALLBACKS_OF = Statement(
    sa.select(
        _callback.c.id,
        _callback.c.slot,
        _callback.c.url,
        _callback.c.state,
        _callback.c.attempt,
        _callback.c.next_at,
        _callback.c.created_at,
        _callback.c.closed_at,
    )
    .where(_callback.c.token == _bind("token"))
    .order_by(_callback.c.slot)
)
ATTEMPTS_OF = Statement(
    sa.select(
        _attempt.c.callback_id,
        _attempt.c.n,
        _attempt.c.started_at,
        _attempt.c.duration_ms,
        _attempt.c.status,
        _attempt.c.error,
        _attempt.c.address,
        _attempt.c.response_excerpt,
    )
    .where(
        _attempt.c.callback_id.in_(
            sa.select(_callback.c.id).where(_callback.c.token == _bind("token"))
        )
    )
    .order_by(_attempt.c.callback_id, _attempt.c.n)
)
BACKLOG = Statement(
    sa.select(_callback.c.state, sa.func.count(), sa.func.min(_callback.c.next_at))
    # Literals: an IN list of values would be expanded anew at each run.
    .where(
        _callback.c.state.in_([sa.literal_column(s) for s in ("'due'", "'in_flight'", "'failed'")])
    )
    .group_by(_callback.c.state)
)
