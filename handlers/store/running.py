"""Changes of an operation that has not ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from handlers.records import State
from handlers.store.fence import fence
from handlers.store.operations import operation

_bind = sa.bindparam


@dataclass(frozen=True, slots=True)
class Update:
    """Change columns of a running operation, if it is still ours."""

    statement: Statement
    token: str
    epoch: int
    values: Mapping[str, Any]
    channel: str | None = None  # whom to tell, with an empty payload

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer ours to write."""
        values = {"token": self.token, "epoch": self.epoch, **self.values}
        if not await tx.execute(self.statement, values):
            return False
        if self.channel is not None:
            await tx.notify(self.channel, "")
        return True


def _fenced_update(**values: Any) -> Statement:
    return Statement(sa.update(operation).where(fence).values(**values))


_SET_PROGRESS = _fenced_update(progress=_bind("new_progress"))
_SET_LINKS = _fenced_update(handler_links=_bind("new_links"))
_SET_ATTEMPTS = _fenced_update(
    attempts=_bind("new_attempts"), run_at=_bind("new_run_at"), error_detail=_bind("new_detail")
)
_SET_RETRYING = _fenced_update(retrying=_bind("new_retrying"))
_PAUSE = _fenced_update(
    state=State.PAUSED.value, owner=None, run_at=None, pause_reason=_bind("new_reason")
)
_CANCEL_REQUESTED = Statement(
    sa.select(operation.c.cancel_requested_at)
    .where(operation.c.token == _bind("token"), operation.c.epoch == _bind("epoch"))
    .with_for_update(key_share=True)
)
_HAND_BACK = _fenced_update(state=State.READY.value, owner=None, run_at=_bind("now"))
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


def set_retrying(token: str, epoch: int, retrying: str | None) -> Update:
    """Show which step is waiting for its next attempt (JSON)."""
    return Update(_SET_RETRYING, token, epoch, {"new_retrying": retrying})


class Pause(Update):
    """Stop an operation until an operator has had a look, unless it is to end."""

    __slots__ = ()

    async def apply(self, tx: Transaction) -> bool:
        """Return whether a cancel was asked for before: it is for who pauses to end it."""
        values = {"token": self.token, "epoch": self.epoch, **self.values}
        # First: what the same transaction adds to the journal must find the fence still open.
        rows = await tx.fetch(_CANCEL_REQUESTED, values)
        await tx.execute(self.statement, values)
        return any(requested_at is not None for (requested_at,) in rows)


def pause(token: str, epoch: int, reason: str) -> Pause:
    """Stop an operation until an operator has had a look."""
    return Pause(_PAUSE, token, epoch, {"new_reason": reason})


def hand_back(token: str, epoch: int, now: int) -> Update:
    """Give an operation up for another process, or the next one, to continue at once."""
    return Update(_HAND_BACK, token, epoch, {"now": now}, channel="due")


def started_by_handler(token: str, epoch: int, handler_token: str, links: str) -> Update:
    """Keep the token under which a handler's own operation runs elsewhere."""
    return Update(
        _STARTED_BY_HANDLER,
        token,
        epoch,
        {"new_handler_token": handler_token, "new_links": links},
    )


_SUSPEND = Statement(
    sa.update(operation)
    .where(fence, operation.c.wake_seq == _bind("seen_wake_seq"))
    .values(state=State.READY.value, owner=None, run_at=_bind("new_run_at"))
)
_AFTER_SUSPEND = Statement(
    sa.select(operation.c.state).where(
        operation.c.token == _bind("token"), operation.c.epoch == _bind("epoch")
    )
)


class Suspended(Enum):
    """What became of a suspension."""

    DONE = auto()  # the operation is in nobody's memory
    WOKEN = auto()  # something happened to it that this process has not seen
    LOST = auto()  # it is no longer ours


@dataclass(frozen=True, slots=True)
class Suspend:
    """Take an operation out of memory, unless something happened to it from outside.

    Args:
        token: The operation.
        epoch: The claim under which it runs.
        run_at: When it is to be taken up again, whatever happens (milliseconds since 1970).
        wake_seq: What this process has seen of what happened to it.
    """

    token: str
    epoch: int
    run_at: int | None
    wake_seq: int

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> Suspended:
        """Return whether the operation is out of memory now, and why not."""
        values = {
            "token": self.token,
            "epoch": self.epoch,
            "new_run_at": self.run_at,
            "seen_wake_seq": self.wake_seq,
        }
        if await tx.execute(_SUSPEND, values):
            return Suspended.DONE
        for (state,) in await tx.fetch(_AFTER_SUSPEND, values):
            if state == State.RUNNING:
                return Suspended.WOKEN
            if state == State.READY:
                return Suspended.DONE  # a commit that failed was one all the same
        return Suspended.LOST


LOOK = Statement(
    sa.select(
        operation.c.epoch, operation.c.state, operation.c.wake_seq, operation.c.cancel_requested_at
    ).where(operation.c.token == _bind("token"))
)
"""What may have happened to a running operation from outside."""
