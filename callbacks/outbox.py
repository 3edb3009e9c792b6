"""The outbox: what is to be delivered, written in the transactions that decide it.

Rows in flight belong to a process, their `owner`, while its lease lasts; `outcomes` and `claims`
have what becomes of them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import sqlalchemy as sa

from callbacks.database import Row, Statement, Transaction, table_of
from callbacks.destinations import touch
from callbacks.records import CallbackRecord, CallbackState
from nexus_spec.json_text import json_text

callback = table_of(CallbackRecord)
_bind = sa.bindparam

SLOTS_PER_OPERATION = 10

RenderedCompletion = tuple[Sequence[tuple[str, str]], bytes]
"""Headers and body of a completion as they go out, without the callers' own headers."""


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
    """One frozen completion on its way to one URL, claimed by a process."""

    id: int
    token: str
    slot: int  # below 0: a notice to the operator
    url: str
    destination: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    attempt: int  # the attempt under way, from 1
    retries: int  # how many attempts have failed, as far as the schedule counts them
    outcome_unknown: bool  # an earlier attempt may have arrived
    deadline_at: int  # milliseconds since 1970
    owner: str  # the process that sends it
    probe: bool = False  # whether its destination's breaker is open


class Terms(Protocol):
    """On what terms this process delivers."""

    @property
    def owner(self) -> str:
        """The process, as leases name it."""

    def accepts(self, destination: str) -> bool:
        """Whether a completion that is frozen now would be sent at once."""

    def max_age_ms(self, destination: str) -> int:
        """For how long its delivery is tried, in milliseconds."""


COLUMNS = (
    callback.c.id,
    callback.c.token,
    callback.c.slot,
    callback.c.url,
    callback.c.destination,
    callback.c.headers,
    callback.c.body,
    callback.c.attempt,
    callback.c.retries,
    callback.c.outcome_unknown,
    callback.c.deadline_at,
    callback.c.owner,
)

_REGISTER = Statement(
    sa.insert(callback).values(
        token=_bind("token"),
        slot=_bind("slot"),
        registration_hash=_bind("registration_hash"),
        destination=_bind("destination"),
        url=_bind("url"),
        headers=_bind("headers"),
        state=CallbackState.REGISTERED.value,
        attempt=0,
        retries=0,
        outcome_unknown=0,
        created_at=_bind("now"),
    )
)
_HASHES = Statement(
    sa.select(callback.c.registration_hash).where(
        callback.c.token == _bind("token"), callback.c.slot >= 0
    )
)
_REGISTERED = Statement(
    sa.select(
        callback.c.id,
        callback.c.slot,
        callback.c.url,
        callback.c.destination,
        callback.c.headers,
    ).where(
        callback.c.token == _bind("token"),
        callback.c.state == CallbackState.REGISTERED.value,
    )
)
_FREEZE = Statement(
    sa.update(callback)
    .where(callback.c.id == _bind("row_id"))
    .values(
        state=_bind("new_state"),
        owner=_bind("new_owner"),
        headers=_bind("new_headers"),
        body=_bind("new_body"),
        attempt=_bind("new_attempt"),
        next_at=_bind("now"),
        deadline_at=_bind("new_deadline_at"),
    )
)
_FROZEN_BY = Statement(
    sa.update(callback)
    .where(
        callback.c.token == _bind("token"),
        callback.c.owner == _bind("owner_is"),
        callback.c.attempt == 1,
        callback.c.state == CallbackState.IN_FLIGHT.value,
    )
    # Marks them as held from now on, for whoever found meanwhile that nobody holds them.
    .values(next_at=_bind("now"))
    .returning(*COLUMNS)
)
_FORGET = Statement(sa.delete(callback).where(callback.c.token == _bind("token")))


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
    completion: Callable[[], RenderedCompletion],
    *,
    now: int,
    terms: Terms,
) -> list[Delivery]:
    """Freeze a completion into every registered callback of an operation that ends.

    Where this process accepts the destination, attempt 1 follows at once, from memory: the rows
    are born in flight, so that a crash leaves an attempt of unknown outcome behind. Otherwise they
    are due, and whoever has room takes them.

    Args:
        tx: The transaction that ends the operation, and has locked it.
        token: The operation.
        completion: Asked once, and only where there is a callback.
        now: Milliseconds since 1970.
        terms: On what terms this process delivers.

    Returns:
        What this process has to send now.
    """
    deliveries: list[Delivery] = []
    waiting: set[str] = set()
    rows = await tx.fetch(_REGISTERED, {"token": token})
    if not rows:
        return deliveries
    headers, body = completion()
    for row_id, slot, url, destination, own in rows:
        all_headers = [(str(n), str(v)) for n, v in json.loads(own)]
        all_headers += headers
        claim = terms.accepts(destination)
        deadline_at = now + terms.max_age_ms(destination)
        await tx.execute(
            _FREEZE,
            {
                "row_id": row_id,
                "new_state": CallbackState.IN_FLIGHT if claim else CallbackState.DUE,
                "new_owner": terms.owner if claim else None,
                "new_headers": json_text(all_headers),
                "new_body": body,
                "new_attempt": 1 if claim else 0,
                "now": now,
                "new_deadline_at": deadline_at,
            },
        )
        if not claim:
            waiting.add(destination)
            continue
        deliveries.append(
            Delivery(
                id=row_id,
                token=token,
                slot=slot,
                url=url,
                destination=destination,
                headers=all_headers,
                body=body,
                attempt=1,
                retries=0,
                outcome_unknown=False,
                deadline_at=deadline_at,
                owner=terms.owner,
            )
        )
    for destination in sorted(waiting):
        await touch(tx, destination, now)
    if waiting:
        await tx.notify("deliver", "")
    return deliveries


async def frozen_by(tx: Transaction, token: str, owner: str, now: int) -> list[Delivery]:
    """Return what a process claimed as it ended an operation, where it did not hear of its commit.

    Empty where there were no callbacks, where they were left to be claimed, or where too much time
    has passed and others have taken them.
    """
    rows = await tx.fetch(_FROZEN_BY, {"token": token, "owner_is": owner, "now": now})
    return [read_delivery(row) for row in rows]


def read_delivery(row: Row) -> Delivery:
    """Turn a row of `COLUMNS`, claimed, into its value."""
    (
        row_id,
        token,
        slot,
        url,
        destination,
        headers,
        body,
        attempt,
        retries,
        outcome_unknown,
        deadline_at,
        owner,
    ) = row
    return Delivery(
        id=row_id,
        token=token,
        slot=slot,
        url=url,
        destination=destination,
        headers=[(str(n), str(v)) for n, v in json.loads(headers)],
        body=body,
        attempt=attempt,
        retries=max(retries, 0),
        outcome_unknown=bool(outcome_unknown),
        deadline_at=deadline_at,
        owner=owner,
    )
