"""The operation table as values, and every query on it."""

from dataclasses import dataclass, fields

import sqlalchemy as sa

from callbacks.database import Row, Statement, table_of
from handlers.records import OperationRecord, State

operation = table_of(OperationRecord)
_bind = sa.bindparam

OPEN_STATES = (State.READY, State.RUNNING, State.PAUSED)


@dataclass(slots=True)
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
    owner: str | None
    epoch: int
    wake_seq: int
    run_at: int | None
    attempts: int
    losses: int
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
    retrying: str | None
    created_at: int
    closed_at: int | None


COLUMNS = [operation.c[field.name] for field in fields(StoredOperation)]
_STATE = [field.name for field in fields(StoredOperation)].index("state")


def read_operation(row: Row) -> StoredOperation:
    """Turn a row of `LOAD` into its value."""
    values = list(row)
    values[_STATE] = State(values[_STATE])
    return StoredOperation(*values)


LOAD = Statement(sa.select(*COLUMNS).where(operation.c.token == _bind("token")))
BY_HANDLER_TOKEN = Statement(
    sa.select(*COLUMNS).where(operation.c.handler_token == _bind("handler_token"))
)
# Literals: an IN list of values would be expanded anew at each run.
is_open = operation.c.state.in_([sa.literal_column(f"'{state}'") for state in OPEN_STATES])
# What serves an operation, as one text for `.in_(listed("hosted"))`.
_BETWEEN = "\x1f"
hosted_as = operation.c.endpoint + _BETWEEN + operation.c.service + _BETWEEN + operation.c.operation


def hosted_name(endpoint: str, service: str, operation: str) -> str:
    """Return what `hosted_as` is for the operations of one handler."""
    return _BETWEEN.join((endpoint, service, operation))


COUNT_OPEN = Statement(
    sa.select(operation.c.state, sa.func.count()).where(is_open).group_by(operation.c.state)
)
LIST = Statement(
    sa.select(*COLUMNS)
    .where(
        operation.c.token < _bind("before"),
        sa.or_(_bind("state_is").is_(None), operation.c.state == _bind("state_is")),
        sa.or_(_bind("service_is").is_(None), operation.c.service == _bind("service_is")),
        sa.or_(_bind("operation_is").is_(None), operation.c.operation == _bind("operation_is")),
    )
    .order_by(operation.c.token.desc())
    .limit(_bind("most"))
)
