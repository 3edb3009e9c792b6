"""The tables of delivery: the outbox, its attempts and its destinations.

Times are milliseconds since 1970, UTC.
"""

from enum import StrEnum

from sqlalchemy import Column, Integer, LargeBinary, UniqueConstraint
from sqlmodel import BigInteger, Field, SQLModel

from callbacks.database import partial_index


class CallbackState(StrEnum):
    """Where one completion is on its way to one callback URL."""

    REGISTERED = "registered"  # the operation has not ended yet
    DUE = "due"  # to be sent at next_at, or when its destination takes deliveries again
    IN_FLIGHT = "in_flight"  # an attempt runs; after a crash its outcome is unknown
    DELIVERED = "delivered"
    FAILED = "failed"  # a dead letter: refused for good, or too old; kept, and can be replayed


BEGUN_ANEW = -1
"""The `retries` of a delivery that is sent again from the start and was not attempted since.

What is told of an earlier attempt, late, must not close it.
"""


class CallbackRecord(SQLModel, table=True):
    """The outbox: one row for each callback URL of an operation.

    Registered with the start; url, headers and body are frozen in the transaction that ends the
    operation. Slots below 0 hold what the gateway tells its own operator about the callback of
    slot -1 - slot.
    """

    __tablename__ = "callback"
    __table_args__ = (
        UniqueConstraint("token", "slot"),
        partial_index("callback_due", "destination", "next_at", where="state = 'due'"),
        partial_index("callback_aging", "destination", "deadline_at", where="state = 'due'"),
        partial_index("callback_owned", "owner", where="state = 'in_flight'"),
        partial_index("callback_dead", "id", where="state = 'failed'"),
        partial_index(
            "callback_dead_of_destination", "destination", "id", where="state = 'failed'"
        ),
    )

    id: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    )
    token: str
    slot: int
    registration_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    destination: str
    url: str
    headers: str  # JSON [[name, value], ...]: the caller's, from the end on all that is sent
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    state: str = CallbackState.REGISTERED
    owner: str | None = None  # of `in_flight`: the process that sends it
    attempt: int = 0  # how many were begun
    retries: int = 0  # those that failed since it was frozen or BEGUN_ANEW: the schedule's count
    outcome_unknown: int = 0  # 1: an earlier attempt may have arrived
    reason: str | None = None  # why the last attempt failed, or why it was given up
    next_at: int | None = Field(default=None, sa_type=BigInteger)  # in flight: when claimed
    deadline_at: int | None = Field(default=None, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)
    closed_at: int | None = Field(default=None, sa_type=BigInteger)


class DeliveryAttemptRecord(SQLModel, table=True):
    """One attempt that did not simply succeed, or the one that did after others."""

    __tablename__ = "delivery_attempt"

    callback_id: int = Field(primary_key=True, sa_type=BigInteger)
    n: int = Field(primary_key=True)
    started_at: int = Field(sa_type=BigInteger)
    duration_ms: int
    status: int | None = None
    error: str | None = None
    address: str | None = None
    response_excerpt: str | None = None


class DestinationRecord(SQLModel, table=True):
    """What all processes know of one `scheme://host:port`; none where it never made trouble.

    `wake_at` is when deliveries to it are to be looked for: never later than the first of them may
    be sent, NULL where none is due or it is disabled.
    """

    __tablename__ = "destination"
    __table_args__ = (
        partial_index("destination_wake", "wake_at", where="wake_at IS NOT NULL"),
        partial_index("destination_open", "name", where="open_until IS NOT NULL"),
    )

    name: str = Field(primary_key=True)
    wake_at: int | None = Field(default=None, sa_type=BigInteger)
    failures: int = 0  # in a row, until the breaker opens
    openings: int = 0  # of the breaker, in a row
    open_until: int | None = Field(default=None, sa_type=BigInteger)  # NULL: the breaker is closed
    probe_until: int | None = Field(default=None, sa_type=BigInteger)  # one is under way
    not_before: int | None = Field(default=None, sa_type=BigInteger)  # `Retry-After`
    disabled_at: int | None = Field(default=None, sa_type=BigInteger)
    changed_at: int = Field(sa_type=BigInteger)


class ReplicaRecord(SQLModel, table=True):
    """One running gateway process; what it owns is safe from others while its lease lasts."""

    __tablename__ = "replica"

    id: str = Field(primary_key=True)
    lease_until: int = Field(sa_type=BigInteger)
    version: str
    started_at: int = Field(sa_type=BigInteger)


class SigningKeyRecord(SQLModel, table=True):
    """A secret that signs what the gateway sends."""

    __tablename__ = "signing_key"

    id: str = Field(primary_key=True)
    purpose: str
    secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: int = Field(sa_type=BigInteger)
    retired_at: int | None = Field(default=None, sa_type=BigInteger)


RECORDS: tuple[type[SQLModel], ...] = (
    CallbackRecord,
    DeliveryAttemptRecord,
    DestinationRecord,
    ReplicaRecord,
    SigningKeyRecord,
)
"""Every table of this package."""
