"""Recording a start, once, and taking it back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks import outbox
from callbacks.database import Statement, Transaction
from callbacks.outbox import Delivery, Registration, RenderedCompletion, Terms
from handlers.records import State
from handlers.store.operations import COLUMNS, StoredOperation, is_open, operation, read_operation

_bind = sa.bindparam

_BY_REQUEST = Statement(
    sa.select(*COLUMNS).where(
        operation.c.endpoint == _bind("endpoint"),
        operation.c.service == _bind("service"),
        operation.c.operation == _bind("operation"),
        operation.c.caller == _bind("caller"),
        operation.c.request_id == _bind("request_id"),
    )
)

_START_COLUMNS = (
    "token",
    "owner",
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
    sa.insert(operation).values(
        {name: _bind(name) for name in _START_COLUMNS}
        | {
            "state": State.RUNNING.value,
            "epoch": 1,
            "wake_seq": 0,
            "attempts": 0,
            "losses": 0,
            "watched": 0,
            "handler_links": "[]",
        }
    ),
    or_ignore=True,
)
_FORGET = Statement(
    sa.delete(operation).where(
        operation.c.token == _bind("token"), operation.c.handler_token.is_(None), is_open
    )
)


@dataclass(slots=True)
class RecordStart:
    """Record a start, unless its request id is known already."""

    values: Mapping[str, Any]  # the columns of _START_COLUMNS
    registration: Registration | None

    @property
    def subject(self) -> str | None:
        """The operation."""
        return str(self.values["token"])

    async def apply(self, tx: Transaction) -> StoredOperation | None:
        """Return None for a new operation, or the one that has the request id."""
        while not await tx.execute(_INSERT, self.values):
            if rows := await tx.fetch(_BY_REQUEST, self.values):
                known = read_operation(rows[0])
                # A commit that failed may have been one all the same; nobody claimed it since.
                return None if known.token == self.values["token"] and known.epoch == 1 else known
            # It was deleted between the two statements: the request id is free again.
        if self.registration is not None:
            await outbox.register_first(
                tx, self.values["token"], self.registration, self.values["created_at"]
            )
        return None


@dataclass(frozen=True, slots=True)
class ForgetStart:
    """Take a start back: its handler refused the request, so nothing was accepted.

    An operation that has ended all the same, or was accepted, stays.
    """

    token: str

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> None:
        """Delete the operation and its callback, so that the caller may try again."""
        if await tx.execute(_FORGET, {"token": self.token}):
            await outbox.forget(tx, self.token)


# Locked, so that the operation does not end, or is deleted, before the callback is committed.
_STATE_OF = Statement(
    sa.select(operation.c.state)
    .where(operation.c.token == _bind("token"))
    .with_for_update(key_share=True)
)


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
    terms: Terms  # on which this process delivers

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> list[Delivery] | None:
        """Return the deliveries to send now, or None where the completion is needed first.

        Raises:
            ValueError: The operation has as many callbacks as it may have.
        """
        rows = await tx.fetch(_STATE_OF, {"token": self.token})
        if not rows:
            return None  # its retention ended this moment
        ended = State(rows[0][0]).ended
        completion = self.completion
        if ended and completion is None:
            return None
        if not await outbox.register(tx, self.token, self.registration, self.now) or not ended:
            return []
        assert completion is not None
        return await outbox.freeze(
            tx,
            self.token,
            lambda: completion,
            now=self.now,
            terms=self.terms,
        )
