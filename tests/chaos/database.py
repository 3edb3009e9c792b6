"""What a database holds, read beside the gateways that serve it."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from callbacks.database import Row, Statement, is_postgres, open_database, sqlite_path, table_of
from callbacks.records import CallbackRecord, CallbackState
from handlers.records import JournalRecord, OperationRecord, State
from handlers.store.operations import is_open

Fetch = Callable[[Statement], Awaitable[Sequence[Row]]]

_operation = table_of(OperationRecord)
_journal = table_of(JournalRecord)
_callback = table_of(CallbackRecord)

_OPERATIONS = Statement(
    sa.select(
        _operation.c.token,
        _operation.c.request_id,
        _operation.c.state,
        _operation.c.owner,
        _operation.c.epoch,
        _operation.c.pause_reason,
        _operation.c.output,
        _operation.c.failure,
    )
)
_JOURNAL = Statement(
    sa.select(
        _journal.c.token,
        _journal.c.ordinal,
        _journal.c.key,
        _journal.c.kind,
        _journal.c.epoch,
        _journal.c.output,
        _journal.c.created_at,
    ).order_by(_journal.c.token, _journal.c.ordinal)
)
_CALLBACKS = Statement(
    sa.select(_callback.c.token, _callback.c.state, _callback.c.owner, _callback.c.body)
)
_UNFINISHED = Statement(sa.select(sa.func.count()).select_from(_operation).where(is_open))
_UNDELIVERED = Statement(
    sa.select(sa.func.count())
    .select_from(_callback)
    .where(_callback.c.state.in_([sa.literal_column(f"'{s}'") for s in ("due", "in_flight")]))
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a journal."""

    token: str
    ordinal: int
    key: str
    kind: str
    epoch: int
    output: bytes | None
    created_at: int

    @property
    def label(self) -> str:
        """What the step is called, wherever in the handler it is."""
        return self.key.rpartition("/")[2].partition("#")[0]

    @property
    def nonce(self) -> str:
        """The result of the run of the step that was recorded."""
        return str(json.loads(self.output or b"null"))


@dataclass(frozen=True, slots=True)
class Callback:
    """One completion that is owed."""

    token: str
    state: str
    owner: str | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """One operation, with all that belongs to it."""

    token: str
    request_id: str
    state: str
    owner: str | None
    epoch: int
    pause_reason: str | None
    output: bytes | None
    failure: bytes | None
    journal: list[Entry] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return State(self.state).ended

    @property
    def steps(self) -> list[Entry]:
        """What was recorded of its steps, in order."""
        return [entry for entry in self.journal if entry.kind == "step"]


@contextlib.asynccontextmanager
async def reading(url: str) -> AsyncIterator[Fetch]:
    """Open a database to read from, also while gateways serve it."""
    if is_postgres(url):
        database = await open_database(url)
        try:
            yield lambda statement: database.fetch(statement, {})
        finally:
            await database.aclose()
        return
    # Without the lock that a gateway holds on the file.
    file = sqlite3.connect(f"file:{sqlite_path(url)}?mode=ro", uri=True, timeout=10.0)
    with contextlib.closing(file):

        async def fetch(statement: Statement) -> Sequence[Row]:
            return file.execute(statement.sql).fetchall()

        yield fetch


async def unfinished(fetch: Fetch) -> int:
    """Return how many operations have not ended, and callbacks are not delivered."""
    counts = [(await fetch(statement))[0][0] for statement in (_UNFINISHED, _UNDELIVERED)]
    return int(sum(counts))


async def everything(fetch: Fetch) -> list[Ended]:
    """Return all operations with their journals and callbacks."""
    operations = {row[0]: Ended(*row) for row in await fetch(_OPERATIONS)}
    for row in await fetch(_JOURNAL):
        operations[row[0]].journal.append(Entry(*row))
    for row in await fetch(_CALLBACKS):
        operations[row[0]].callbacks.append(Callback(*row))
    return list(operations.values())


def is_delivered(callback: Callback) -> bool:
    """Whether the caller has it."""
    return callback.state == CallbackState.DELIVERED
