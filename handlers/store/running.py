"""Changes of an operation that has not ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from callbacks.database import Statement, Transaction
from handlers.records import State
from handlers.store.fence import fence
from handlers.store.operations import is_open, operation

_bind = sa.bindparam


@dataclass(frozen=True, slots=True)
class Update:
    """Change columns of a running operation, if it is still ours."""

    statement: Statement
    token: str
    epoch: int
    values: Mapping[str, Any]

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation is no longer ours to write."""
        return bool(
            await tx.execute(
                self.statement, {"token": self.token, "epoch": self.epoch, **self.values}
            )
        )


def _fenced_update(**values: Any) -> Statement:
    return Statement(sa.update(operation).where(fence).values(**values))


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
    sa.update(operation)
    .where(operation.c.token == _bind("token"), is_open)
    .values(cancel_requested_at=sa.func.coalesce(operation.c.cancel_requested_at, _bind("now")))
)


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Note that a caller wants an operation canceled."""

    token: str
    now: int

    @property
    def subject(self) -> str | None:
        """The operation."""
        return self.token

    async def apply(self, tx: Transaction) -> bool:
        """Return False where the operation has ended."""
        return bool(await tx.execute(_REQUEST_CANCEL, {"token": self.token, "now": self.now}))
