"""Listing and rotating signing keys: done by the command line, beside a running gateway."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from callbacks.database import Statement, database_now, run_beside, table_of
from callbacks.records import SigningKeyRecord
from callbacks.signing_keys import CALLBACKS, CREATE_FIRST, signs_now
from clients.callback_tokens import SigningKey, new_signing_key
from clients.signatures import destination_secret
from gateway.schema import prepare_beside

_keys = table_of(SigningKeyRecord)
_bind = sa.bindparam

_NEWEST_FIRST = (_keys.c.created_at.desc(), _keys.c.id.desc())
_LIST = Statement(
    sa.select(_keys.c.id, _keys.c.purpose, _keys.c.created_at, _keys.c.retired_at).order_by(
        _keys.c.purpose, *_NEWEST_FIRST
    )
)
_SIGNING = Statement(
    sa.select(_keys.c.secret)
    .where(_keys.c.purpose == _bind("purpose"), signs_now())
    .order_by(*_NEWEST_FIRST)
)
_CREATE = Statement(
    sa.insert(_keys)
    .values(
        id=_bind("id"), purpose=_bind("purpose"), secret=_bind("secret"), created_at=database_now()
    )
    .returning(_keys.c.created_at)
)
_until = database_now() + _bind("overlap_ms", type_=sa.BigInteger)
_RETIRE = Statement(
    sa.update(_keys)
    .where(
        _keys.c.purpose == _bind("purpose"),
        # Only what is older: of two rotations at once, neither retires the newest key.
        sa.or_(
            _keys.c.created_at < _bind("new_created_at"),
            sa.and_(_keys.c.created_at == _bind("new_created_at"), _keys.c.id < _bind("new_id")),
        ),
        # A rotation never lets a key sign for longer than an earlier one said.
        sa.or_(_keys.c.retired_at.is_(None), _keys.c.retired_at > _until),
    )
    .values(retired_at=_until)
    .returning(_keys.c.id, _keys.c.retired_at)
)


@dataclass(frozen=True, slots=True)
class SigningKeyInfo:
    """One key, without its secret. Times are milliseconds since 1970, UTC."""

    id: str
    purpose: str
    created_at: int
    signs_until: int | None  # None: no end is set


@dataclass(frozen=True, slots=True)
class Rotation:
    """The key that a rotation made, and what it retired: ids, and until when each still signs."""

    key_id: str
    retired: Mapping[str, int]


class StoredSigningKeys:
    """The signing keys in one database.

    A SQLite file is brought up to date; a PostgreSQL database has to have its schema.

    Raises:
        DatabaseError: The database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        prepare_beside(url, _keys)

    def list(self) -> Sequence[SigningKeyInfo]:
        """Return the keys of all purposes, the newest of each first, retired ones included."""
        return [SigningKeyInfo(*row) for row in run_beside(self._url, _LIST, {})]

    def rotate(self, overlap: timedelta) -> Rotation:
        """Make a new key for callbacks; the older ones sign beside it for as long as is said.

        Gateways that run sign with the new key, too, within a minute.
        """
        key = new_signing_key()
        [(created_at,)] = run_beside(self._url, _CREATE, _row(key))
        # After it and not with it: whatever happens in between, a key that signs is there.
        retired = run_beside(
            self._url,
            _RETIRE,
            {
                "purpose": CALLBACKS,
                "new_id": key.id,
                "new_created_at": created_at,
                "overlap_ms": overlap // timedelta(milliseconds=1),
            },
        )
        return Rotation(key.id, dict(retired))

    def secrets_of(self, destination: str, *, notices: bool = False) -> Sequence[bytes]:
        """Return the secrets that deliveries to a destination are signed with now.

        The newest comes first; the first key is made where there is none.

        Args:
            destination: `scheme://host:port`.
            notices: Those of the notices of dead letters, instead of those of completions.
        """
        run_beside(self._url, CREATE_FIRST, _row(new_signing_key()))
        rows = run_beside(self._url, _SIGNING, {"purpose": CALLBACKS})
        return [
            destination_secret(bytes(secret), destination, notices=notices) for (secret,) in rows
        ]


def _row(key: SigningKey) -> dict[str, object]:
    return {"id": key.id, "purpose": CALLBACKS, "secret": key.secret}
