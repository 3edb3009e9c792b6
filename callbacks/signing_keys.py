"""The keys that sign what the gateway sends: in the database, shared by all processes on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.database import (
    Database,
    Statement,
    Transaction,
    database_now,
    persist,
    table_of,
)
from callbacks.records import SigningKeyRecord
from clients.callback_tokens import SigningKey, new_signing_key

__all__ = ["CALLS", "SigningKeys"]

CALLS = "calls"
"""The purpose of the keys that sign the callback tokens of outgoing calls."""

_TRUSTED_SECONDS = 60.0  # how soon every process signs with a key that was made elsewhere

_keys = table_of(SigningKeyRecord)
_bind = sa.bindparam

_LOAD = Statement(
    sa.select(_keys.c.id, _keys.c.secret, _keys.c.retired_at)
    .where(_keys.c.purpose == _bind("purpose"))
    .order_by(_keys.c.created_at.desc(), _keys.c.id.desc())
)
_CREATE = Statement(
    sa.insert(_keys).from_select(
        ["id", "purpose", "secret", "created_at"],
        sa.select(
            _bind("id", type_=sa.String),
            _bind("purpose", type_=sa.String),
            _bind("secret", type_=sa.LargeBinary),
            database_now(),
        ).where(
            ~sa.exists(
                sa.select(_keys.c.id).where(
                    _keys.c.purpose == _bind("purpose"), _keys.c.retired_at.is_(None)
                )
            )
        ),
    ),
    or_ignore=True,
)


@dataclass(frozen=True, slots=True)
class _CreateFirst:
    """Make a key where the purpose has none that signs.

    Two processes that do so at the same moment make two: both are trusted, so that does no harm.
    """

    purpose: str
    key: SigningKey

    @property
    def subject(self) -> str | None:
        """The purpose."""
        return f"signing-key/{self.purpose}"

    async def apply(self, tx: Transaction) -> None:
        """Leave the keys that are there as they are."""
        key = self.key
        await tx.execute(_CREATE, {"id": key.id, "purpose": self.purpose, "secret": key.secret})


class SigningKeys:
    """The keys of one purpose, read when they are needed.

    Args:
        database: Where they are.
        purpose: What they sign.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        database: Database,
        purpose: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._purpose = purpose
        self._monotonic = monotonic
        self._known: dict[str, SigningKey] = {}
        self._signing: SigningKey | None = None
        self._read_at = float("-inf")

    async def signing(self) -> SigningKey:
        """Return the key to sign with, the newest that is not retired; made at first need."""
        if self._monotonic() - self._read_at >= _TRUSTED_SECONDS:
            await self._read()
        while self._signing is None:
            await persist(self._database, _CreateFirst(self._purpose, new_signing_key()))
            await self._read()
        return self._signing

    async def trusted(self, key_id: str) -> dict[str, SigningKey]:
        """Return the keys whose signatures count, retired ones included.

        Args:
            key_id: The one that is looked for; where it is not known yet the database is asked.
        """
        if key_id not in self._known:
            await self._read()
        return self._known

    async def _read(self) -> None:
        read_at = self._monotonic()
        rows = await self._database.fetch(_LOAD, {"purpose": self._purpose})
        self._known = {key_id: SigningKey(key_id, bytes(secret)) for key_id, secret, _ in rows}
        newest = next((key_id for key_id, _, retired_at in rows if retired_at is None), None)
        self._signing = None if newest is None else self._known[newest]
        self._read_at = read_at
