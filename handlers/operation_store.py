"""Every statement on the operation and journal tables, as writes that commit whole.

Each write that changes a running operation carries the epoch under which it was claimed (the
fencing token) and changes nothing when the operation has moved on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from callbacks import outbox
from callbacks.database import Row, Statement, Transaction, table_of
from callbacks.outbox import Delivery, Registration
from handlers.records import JournalRecord, OperationRecord, State

_operation = table_of(OperationRecord)
_journal = table_of(JournalRecord)
_bind = sa.bindparam

OPEN_STATES = (State.READY, State.RUNNING, State.PAUSED)

RenderedCompletion = tuple[Sequence[tuple[str, str]], bytes]


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """One row of the operation table."""

    token: str
    handler_token: str | None
    endpoint: str
    service: str
    operation: str
    caller: str
    request_id: str
    input_hash: bytes
    input: bytes
    content_headers: str
    headers: str
    state: State
    pause_reason: str | None
    epoch: int
    run_at: int | None
    attempts: int
    cancel_requested_at: int | None
    deadline_at: int | None
    links: str
    handler_links: str
    trace_context: str | None
    output: bytes | None
    output_headers: str | None
    failure: bytes | None
    error_detail: str | None
    progress: str | None
    created_at: int
    closed_at: int | None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One row of the journal table."""

    key: str
    ordinal: int
    kind: str
    args_hash: bytes | None
    output: bytes | None
    error: str | None
    attempt: int
    wake_at: int | None
    created_at: int


_OPERATION_COLUMNS = [_operation.c[field.name] for field in fields(StoredOperation)]
_JOURNAL_COLUMNS = [_journal.c[field.name] for field in fields(JournalEntry)]
_STATE = [field.name for field in fields(StoredOperation)].index("state")


def read_operation(row: Row) -> StoredOperation:
    """Turn a row of `LOAD` into its value."""
    values = list(row)
    values[_STATE] = State(values[_STATE])
    return StoredOperation(*values)


def read_entry(row: Row) -> JournalEntry:
    """Turn a row of `LOAD_JOURNAL` into its value."""
    return JournalEntry(*row)


# ---------------------------------------------------------------- reading

LOAD = Statement(sa.select(*_OPERATION_COLUMNS).where(_operation.c.token == _bind("token")))
LOAD_JOURNAL = Statement(
    sa.select(*_JOURNAL_COLUMNS)
    .where(_journal.c.token == _bind("token"))
    .order_by(_journal.c.ordinal)
)
BY_HANDLER_TOKEN = Statement(
    sa.select(*_OPERATION_COLUMNS).where(_operation.c.handler_token == _bind("handler_token"))
)
# Literals: an IN list of values would be expanded anew at each run.
_is_open = _operation.c.state.in_([sa.literal_column(f"'{state}'") for state in OPEN_STATES])
OPEN_OPERATIONS = Statement(
    sa.select(
        _operation.c.token,
        _operation.c.endpoint,
        _operation.c.service,
        _operation.c.operation,
        _operation.c.state,
        _operation.c.deadline_at,
    )
    .where(_is_open)
    .order_by(_operation.c.token)
)
COUNT_OPEN = Statement(
    sa.select(_operation.c.state, sa.func.count()).where(_is_open).group_by(_operation.c.state)
)
LIST = Statement(
    sa.select(*_OPERATION_COLUMNS)
    .where(
        _operation.c.token < _bind("before"),
        sa.or_(_bind("state_is").is_(None), _operation.c.state == _bind("state_is")),
        sa.or_(_bind("service_is").is_(None), _operation.c.service == _bind("service_is")),
        sa.or_(_bind("operation_is").is_(None), _operation.c.operation == _bind("operation_is")),
    )
    .order_by(_operation.c.token.desc())
    .limit(_bind("most"))
)
_BY_REQUEST = Statement(
    sa.select(*_OPERATION_COLUMNS).where(
        _operation.c.endpoint == _bind("endpoint"),
        _operation.c.service == _bind("service"),
        _operation.c.operation == _bind("operation"),
        _operation.c.caller == _bind("caller"),
        _operation.c.request_id == _bind("request_id"),
    )
)

# ---------------------------------------------------------------- start

_START_COLUMNS = (
    "token",
    "endpoint",
    "service",
    "operation",
    "caller",
    "request_id",
    "input_hash",
    "input",
    "content_headers",
    "headers",
    "deadline_at",
    "links",
    "trace_context",
    "created_at",
)
_INSERT = Statement(
    insert_or_ignore(_operation)
    .values(
        {name: _bind(name) for name in _START_COLUMNS}
        | {
            "state": State.RUNNING.value,
            "epoch": 1,
            "attempts": 0,
            "handler_links": "[]",
        }
    )
    .on_conflict_do_nothing()
)
_FORGET = Statement(
    sa.delete(_operation).where(
        _operation.c.token == _bind("token"), _operation.c.handler_token.is_(None), _is_open
    )
)


@dataclass(frozen=True, slots=True)
class RecordStart:
    """Record a start, unless its request id is known already."""

    values: Mapping[str, Any]  # the columns of _START_COLUMNS
    registration: Registration | None

    def apply(self, tx: Transaction) -> StoredOperation | None:
        """Return None for a new operation, or the one that has the request id."""
        if tx.execute(_INSERT, self.values):
            if self.registration is not None:
                outbox.register_first(
                    tx, self.values["token"], self.registration, self.values["created_at"]
                )
            return None
        return read_operation(tx.fetch(_BY_REQUEST, self.values)[0])


@dataclass(frozen=True, slots=True)
class ForgetStart:
    """Take a start back: its handler refused the request, so nothing was accepted.

    An operation that has ended all the same, or was accepted, stays.
    """

    token: str

    def apply(self, tx: Transaction) -> None:
        """Delete the operation and its callback, so that the caller may try again."""
        if tx.execute(_FORGET, {"token": self.token}):
            outbox.forget(tx, self.token)


_STATE_OF = Statement(sa.select(_operation.c.state).where(_operation.c.token == _bind("token")))


@dataclass(frozen=True, slots=True)
class AddCallback:
    """Give a recorded operation one more callback: a retried start brought another one.

    Where the operation has ended, `completion` is frozen into the new slot at once; without one,
    the answer says that it is needed.
    """

    token: str
    registration: Registration
    now: int
    completion: RenderedCompletion | None
    max_age_ms: int

    def apply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries to send now, or None where the completion is needed first.

        Raises:
            ValueError: The operation has as many callbacks as it may have.
        """
        ended = State(tx.fetch(_STATE_OF, {"token": self.token})[0][0]).ended
        if ended and self.completion is None:
            return None
        if not outbox.register(tx, self.token, self.registration, self.now) or not ended:
            return []
        assert self.completion is not None
        return outbox.freeze(
            tx,
            self.token,
            self.completion,
            now=self.now,
            max_age_ms=self.max_age_ms,
            claim=True,
        )


# ---------------------------------------------------------------- while it runs

_fence = sa.and_(
    _operation.c.token == _bind("token"),
    _operation.c.epoch == _bind("epoch"),
    _operation.c.state == State.RUNNING.value,
)
_APPEND = Statement(
    insert_or_ignore(_journal)
    .from_select(
        [
            "token",
            "key",
            "ordinal",
            "kind",
            "args_hash",
            "output",
            "error",
            "attempt",
            "wake_at",
            "epoch",
            "created_at",
        ],
        sa.select(
            _operation.c.token,
            _bind("key", type_=sa.String),
            _bind("ordinal", type_=sa.Integer),
            _bind("kind", type_=sa.String),
            _bind("args_hash", type_=sa.LargeBinary),
            _bind("output", type_=sa.LargeBinary),
            _bind("error", type_=sa.String),
            _bind("attempt", type_=sa.Integer),
            _bind("wake_at", type_=sa.BigInteger),
            _operation.c.epoch,
            _bind("created_at", type_=sa.BigInteger),
        ).where(_fence),
    )
    .on_conflict_do_nothing()
)
_IS_RECORDED = Statement(
    sa.select(_journal.c.key).where(
        _journal.c.token == _bind("token"),
        _journal.c.key == _bind("key"),
        _journal.c.epoch == _bind("epoch"),
        _journal.c.ordinal == _bind("ordinal"),
    )
)


@dataclass(frozen=True, slots=True)
class AppendJournal:
    """Record that something happened in a handler."""

    token: str
    epoch: int
    entry: JournalEntry

    def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer ours to write."""
        entry = self.entry
        values = {
            "token": self.token,
            "epoch": self.epoch,
            "key": entry.key,
            "ordinal": entry.ordinal,
            "kind": entry.kind,
            "args_hash": entry.args_hash,
            "output": entry.output,
            "error": entry.error,
            "attempt": entry.attempt,
            "wake_at": entry.wake_at,
            "created_at": entry.created_at,
        }
        # A commit that failed may have been one all the same, and is then tried again.
        return bool(tx.execute(_APPEND, values)) or bool(tx.fetch(_IS_RECORDED, values))


@dataclass(frozen=True, slots=True)
class Update:
    """Change columns of a running operation, if it is still ours."""

    statement: Statement
    token: str
    epoch: int
    values: Mapping[str, Any]

    def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer ours to write."""
        return bool(
            tx.execute(self.statement, {"token": self.token, "epoch": self.epoch, **self.values})
        )


def _fenced_update(**values: Any) -> Statement:
    return Statement(sa.update(_operation).where(_fence).values(**values))


_SET_PROGRESS = _fenced_update(progress=_bind("new_progress"))
_SET_LINKS = _fenced_update(handler_links=_bind("new_links"))
_SET_ATTEMPTS = _fenced_update(
    attempts=_bind("new_attempts"), run_at=_bind("new_run_at"), error_detail=_bind("new_detail")
)
_PAUSE = _fenced_update(state=State.PAUSED.value, pause_reason=_bind("new_reason"))
_HAND_BACK = _fenced_update(state=State.READY.value)
_STARTED_BY_HANDLER = _fenced_update(
    handler_token=_bind("new_handler_token"), handler_links=_bind("new_links")
)


def set_progress(token: str, epoch: int, progress: str) -> Update:
    """Show how far an operation is (JSON)."""
    return Update(_SET_PROGRESS, token, epoch, {"new_progress": progress})


def set_links(token: str, epoch: int, links: str) -> Update:
    """Keep the links that a handler added (JSON)."""
    return Update(_SET_LINKS, token, epoch, {"new_links": links})


def set_attempts(token: str, epoch: int, attempts: int, run_at: int, detail: str) -> Update:
    """Count a failed run of a handler and note when it runs again."""
    return Update(
        _SET_ATTEMPTS,
        token,
        epoch,
        {"new_attempts": attempts, "new_run_at": run_at, "new_detail": detail},
    )


def pause(token: str, epoch: int, reason: str) -> Update:
    """Stop an operation until an operator has had a look."""
    return Update(_PAUSE, token, epoch, {"new_reason": reason})


def hand_back(token: str, epoch: int) -> Update:
    """Give an operation up for another process, or the next one, to continue."""
    return Update(_HAND_BACK, token, epoch, {})


def started_by_handler(token: str, epoch: int, handler_token: str, links: str) -> Update:
    """Keep the token under which a handler's own operation runs elsewhere."""
    return Update(
        _STARTED_BY_HANDLER,
        token,
        epoch,
        {"new_handler_token": handler_token, "new_links": links},
    )


_REQUEST_CANCEL = Statement(
    sa.update(_operation)
    .where(_operation.c.token == _bind("token"), _is_open)
    .values(cancel_requested_at=sa.func.coalesce(_operation.c.cancel_requested_at, _bind("now")))
)


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Note that a caller wants an operation canceled."""

    token: str
    now: int

    def apply(self, tx: Transaction) -> bool:
        """Return False where the operation has ended."""
        return bool(tx.execute(_REQUEST_CANCEL, {"token": self.token, "now": self.now}))


_CLAIM = Statement(
    sa.update(_operation)
    .where(
        _operation.c.token == _bind("token"),
        _operation.c.state == _bind("state_is"),
    )
    .values(
        state=State.RUNNING.value,
        epoch=_operation.c.epoch + 1,
        pause_reason=None,
        attempts=sa.case(
            (_operation.c.state == State.PAUSED.value, 0), else_=_operation.c.attempts
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Take an operation under a new epoch; what an earlier owner still writes is then fenced.

    One that was paused gets all its attempts again.
    """

    token: str
    state: State

    def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer in that state."""
        return bool(
            tx.execute(
                _CLAIM,
                {"token": self.token, "state_is": self.state},
            )
        )


# ---------------------------------------------------------------- the end

_MAY_END = Statement(sa.select(_operation.c.token).where(_fence))
_MAY_END_ANY_EPOCH = Statement(
    sa.select(_operation.c.token).where(_operation.c.token == _bind("token"), _is_open)
)
_END = Statement(
    sa.update(_operation)
    .where(_operation.c.token == _bind("token"))
    .values(
        state=_bind("new_state"),
        output=_bind("new_output"),
        output_headers=_bind("new_output_headers"),
        failure=_bind("new_failure"),
        error_detail=_bind("new_detail"),
        pause_reason=None,
        closed_at=_bind("now"),
    )
)


@dataclass(frozen=True, slots=True)
class Finish:
    """End an operation and freeze its completion into its callbacks: the same for every end."""

    token: str
    epoch: int | None  # None: whoever runs it; an operator or an outside completion ends it
    state: State
    output: bytes | None
    output_headers: str | None
    failure: bytes | None
    error_detail: str | None
    completion: RenderedCompletion
    now: int
    max_age_ms: int
    claim: bool

    def apply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries to send now, or None where the operation is not ours to end."""
        fence = _MAY_END if self.epoch is not None else _MAY_END_ANY_EPOCH
        if not tx.fetch(fence, {"token": self.token, "epoch": self.epoch}):
            return None
        deliveries = outbox.freeze(
            tx,
            self.token,
            self.completion,
            now=self.now,
            max_age_ms=self.max_age_ms,
            claim=self.claim,
        )
        tx.execute(
            _END,
            {
                "token": self.token,
                "new_state": self.state,
                "new_output": self.output,
                "new_output_headers": self.output_headers,
                "new_failure": self.failure,
                "new_detail": self.error_detail,
                "now": self.now,
            },
        )
        return deliveries
