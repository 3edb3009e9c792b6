"""The tables of the engine: operations and journals. Times are milliseconds since 1970, UTC."""

from enum import StrEnum

from sqlalchemy import Column, Integer, LargeBinary, UniqueConstraint
from sqlmodel import BigInteger, Field, SQLModel

from callbacks.database import partial_index


class State(StrEnum):
    """Where an operation is; `ready`, `running` and `paused` are all `running` to its caller."""

    READY = "ready"  # recorded, and in nobody's memory
    RUNNING = "running"  # owned by a process
    PAUSED = "paused"  # waits for an operator
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self in _ENDED


_ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})


class OperationRecord(SQLModel, table=True):
    """One operation that was answered with a token, from its start to the end of its retention."""

    __tablename__ = "operation"
    __table_args__ = (
        # caller is never NULL: NULLs are distinct to a unique index, which would let duplicates in.
        UniqueConstraint("endpoint", "service", "operation", "caller", "request_id"),
        partial_index("operation_open", "state", where="state IN ('ready', 'running', 'paused')"),
        partial_index(
            "operation_handler_token", "handler_token", where="handler_token IS NOT NULL"
        ),
        partial_index("operation_due", "run_at", where="state = 'ready'"),
        partial_index("operation_owned", "owner", where="state = 'running' AND owner IS NOT NULL"),
        partial_index(
            "operation_deadline",
            "deadline_at",
            where="closed_at IS NULL AND deadline_at IS NOT NULL",
        ),
        partial_index("operation_expiry", "expires_at", where="expires_at IS NOT NULL"),
    )

    token: str = Field(primary_key=True)
    handler_token: str | None = None
    endpoint: str
    service: str
    operation: str
    caller: str = ""
    request_id: str
    input_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    input: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    content_headers: str  # JSON object
    headers: str  # JSON object: the caller's own headers, as the handler sees them
    state: str
    pause_reason: str | None = None
    owner: str | None = None  # the process that runs it; NULL where none has to
    epoch: int = 0  # the fencing token: raised by every claim
    wake_seq: int = 0  # raised by what happens to it from outside: signal, cancel, completion
    run_at: int | None = Field(default=None, sa_type=BigInteger)  # of `ready`: when it is due
    attempts: int = 0  # failed runs of the handler
    losses: int = 0  # processes lost in a row while it ran without recording anything
    watched: int = 0  # 1: a caller waits for its end at another process than its owner
    cancel_requested_at: int | None = Field(default=None, sa_type=BigInteger)
    deadline_at: int | None = Field(default=None, sa_type=BigInteger)
    links: str = "[]"  # JSON [[url, type], ...]: the caller's
    handler_links: str = "[]"  # the handler's, sent on the 201 and with the completion
    trace_context: str | None = None  # the start's traceparent
    output: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    output_headers: str | None = None  # JSON object
    failure: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # a Failure as JSON
    error_detail: str | None = None  # for operators: the traceback behind a generic failure
    progress: str | None = None  # JSON
    retrying: str | None = None  # JSON: the step that waits for its next attempt
    created_at: int = Field(sa_type=BigInteger)
    closed_at: int | None = Field(default=None, sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)  # end of its retention


class JournalRecord(SQLModel, table=True):
    """One thing that happened in a durable handler and never happens again."""

    __tablename__ = "journal"

    token: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    ordinal: int
    kind: str
    args_hash: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    output: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    error: str | None = None  # JSON
    ref: str | None = None  # what the entry is about elsewhere: a signal's id, a call's token
    attempt: int = 1
    wake_at: int | None = Field(default=None, sa_type=BigInteger)
    epoch: int
    created_at: int = Field(sa_type=BigInteger)


class SignalRecord(SQLModel, table=True):
    """Something that was said to an operation: a signal, or the completion of a call it made."""

    __tablename__ = "signal"
    __table_args__ = (UniqueConstraint("token", "name", "dedupe_id"),)

    id: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    )
    token: str
    name: str
    dedupe_id: str
    payload: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: int = Field(sa_type=BigInteger)


RECORDS: tuple[type[SQLModel], ...] = (OperationRecord, JournalRecord, SignalRecord)
"""Every table of this package."""
