"""The keys that sign what the gateway sends: in the database, shared by all processes on it.

A key signs until `retired_at`, which may lie in the future: while keys are rotated the old and the
new one sign side by side. What a retired key has signed stays trusted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
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

__all__ = ["CALLBACKS", "CALLS", "CREATE_FIRST", "SigningKeys", "signs_now"]

logger = logging.getLogger(__name__)

CALLS = "calls"
"""The purpose of the keys that sign the callback tokens of outgoing calls."""

CALLBACKS = "callbacks"
"""The purpose of the keys from which the secrets that sign deliveries are derived."""

_TRUSTED_SECONDS = 60.0  # how soon every process signs with a key that was made elsewhere
# A database that does not answer: how long to wait for it, and how soon to ask again.
_PATIENCE_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 10.0

_keys = table_of(SigningKeyRecord)
_bind = sa.bindparam


def signs_now() -> sa.ColumnElement[bool]:
    """Return the condition under which a key signs, by the database's clock."""
    return sa.or_(_keys.c.retired_at.is_(None), _keys.c.retired_at > database_now())


_LOAD = Statement(
    # For how long each still signs: all processes then agree, whatever their own clocks say.
    sa.select(_keys.c.id, _keys.c.secret, _keys.c.retired_at - database_now())
    .where(_keys.c.purpose == _bind("purpose"))
    .order_by(_keys.c.created_at.desc(), _keys.c.id.desc())
)
CREATE_FIRST = Statement(
    sa.insert(_keys).from_select(
        ["id", "purpose", "secret", "created_at"],
        sa.select(
            _bind("id", type_=sa.String),
            _bind("purpose", type_=sa.String),
            _bind("secret", type_=sa.LargeBinary),
            database_now(),
        ).where(
            ~sa.exists(
                sa.select(_keys.c.id).where(_keys.c.purpose == _bind("purpose"), signs_now())
            )
        ),
    ),
    or_ignore=True,
)
"""Makes a key (`id`, `purpose`, `secret`) where the purpose has none that signs."""


@dataclass(frozen=True, slots=True)
class _CreateFirst:
    """Make a key where the purpose has none that signs.

    Two processes that do so at the same moment make two: both sign and are trusted, so that does
    no harm.
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
        await tx.execute(
            CREATE_FIRST, {"id": key.id, "purpose": self.purpose, "secret": key.secret}
        )


class SigningKeys:
    """The keys of one purpose, read at first need and then once a minute.

    While the database is away those that are known go on signing.

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
        self._signs_until: Sequence[tuple[SigningKey, float]] = ()  # the newest first
        self._read_again_at = float("-inf")
        self._reading = False
        self._away = False

    async def signing(self) -> SigningKey:
        """Return the newest key that signs; made at first need.

        Raises:
            DatabaseError: None is known, and the database cannot be asked.
        """
        return (await self.all_signing())[0]

    async def all_signing(self) -> Sequence[SigningKey]:
        """Return all keys that sign now, the newest first; the first is made at first need.

        One that was made or retired by another process is known here a minute later.

        Raises:
            DatabaseError: None is known, and the database cannot be asked.
        """
        if self._monotonic() >= self._read_again_at:
            await self._read_again()
        while not (signing := self._signing()):
            await persist(self._database, _CreateFirst(self._purpose, new_signing_key()))
            await self._read()
        return signing

    async def trusted(self, key_id: str) -> dict[str, SigningKey]:
        """Return the keys whose signatures count, retired ones included.

        Args:
            key_id: The one that is looked for; where it is not known yet the database is asked.
        """
        if key_id not in self._known:
            await self._read()
        return self._known

    def _signing(self) -> list[SigningKey]:
        now = self._monotonic()
        return [key for key, until in self._signs_until if now < until]

    async def _read_again(self) -> None:
        signing = bool(self._signing())
        if signing and self._reading:
            return  # another task asks, and until it knows better these are right
        self._reading = True
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS if signing else None):
                await self._read()
        except Exception as error:  # whatever the driver raises
            if not self._signing():
                raise
            self._read_again_at = self._monotonic() + _ASK_AGAIN_SECONDS
            if not self._away:
                logger.warning(
                    "the signing keys cannot be read again; those that are known go on",
                    extra={"purpose": self._purpose, "error": repr(error)},
                )
            self._away = True
        finally:
            self._reading = False

    async def _read(self) -> None:
        read_at = self._monotonic()
        rows = await self._database.fetch(_LOAD, {"purpose": self._purpose})
        keys = [SigningKey(key_id, bytes(secret)) for key_id, secret, _ in rows]
        self._known = {key.id: key for key in keys}
        self._signs_until = [
            (key, read_at + left_ms / 1000 if left_ms is not None else float("inf"))
            for key, (_, _, left_ms) in zip(keys, rows, strict=True)
        ]
        self._read_again_at = read_at + _TRUSTED_SECONDS
        self._away = False
