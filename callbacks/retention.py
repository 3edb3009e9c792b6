"""What happens to the callbacks of operations whose retention is over."""

from collections.abc import Sequence

import sqlalchemy as sa

from callbacks.database import Statement, Transaction, listed, table_of
from callbacks.records import CallbackRecord, CallbackState, DeliveryAttemptRecord
from nexus_spec.json_text import json_text

_callback = table_of(CallbackRecord)
_attempt = table_of(DeliveryAttemptRecord)

_of_tokens = _callback.c.token.in_(listed("tokens"))
_UNDELIVERED = Statement(
    sa.select(_callback.c.token)
    .where(
        _of_tokens,
        _callback.c.state != CallbackState.DELIVERED.value,
        _callback.c.slot >= 0,  # a notice to the operator is no reason to keep an operation
    )
    .distinct()
)
_DELETE_ATTEMPTS = Statement(
    sa.delete(_attempt).where(
        _attempt.c.callback_id.in_(sa.select(_callback.c.id).where(_of_tokens))
    )
)
_DELETE = Statement(
    sa.delete(_callback).where(
        _of_tokens,
        # Nor what was replayed this very moment.
        sa.or_(_callback.c.state == CallbackState.DELIVERED.value, _callback.c.slot < 0),
    )
)


async def undelivered(tx: Transaction, tokens: Sequence[str]) -> list[str]:
    """Return those of the operations that have a completion which did not arrive.

    A dead letter counts: it is kept until it has been replayed.
    """
    rows = await tx.fetch(_UNDELIVERED, {"tokens": json_text(list(tokens))})
    return [token for (token,) in rows]


async def delete(tx: Transaction, tokens: Sequence[str]) -> None:
    """Delete the callbacks of operations, and what is known of their attempts."""
    params = {"tokens": json_text(list(tokens))}
    await tx.execute(_DELETE_ATTEMPTS, params)
    await tx.execute(_DELETE, params)
