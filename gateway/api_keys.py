"""Making, listing and revoking API keys: done by the command line, beside a running gateway."""

import secrets
import sqlite3
from dataclasses import dataclass

import sqlalchemy as sa

from callbacks.database import (
    DatabaseError,
    Statement,
    is_postgres,
    run_beside,
    sqlite_path,
    table_of,
)
from gateway.access import hash_secret, new_secret
from gateway.records import ApiKeyRecord
from gateway.roles import Role
from gateway.schema import has_table, prepare_beside
from handlers.clock import now_ms

_keys = table_of(ApiKeyRecord)
_INSERT = Statement(
    sa.insert(_keys).values(
        id=sa.bindparam("id"),
        principal=sa.bindparam("principal"),
        role=sa.bindparam("role"),
        secret_hash=sa.bindparam("secret_hash"),
        created_at=sa.bindparam("created_at"),
    )
)
_LIST = Statement(
    sa.select(
        _keys.c.id, _keys.c.principal, _keys.c.role, _keys.c.created_at, _keys.c.revoked_at
    ).order_by(_keys.c.created_at)
)
_ANY_VALID = Statement(sa.select(_keys.c.id).where(_keys.c.revoked_at.is_(None)).limit(1))
_REVOKE = Statement(
    sa.update(_keys)
    .where(_keys.c.id == sa.bindparam("key_id"), _keys.c.revoked_at.is_(None))
    .values(revoked_at=sa.bindparam("now"))
    .returning(_keys.c.id)
)


def has_valid_key(url: str) -> bool:
    """Whether a database has a key that is not revoked; it is neither made nor changed.

    Raises:
        DatabaseError: The database cannot be read.
    """
    if is_postgres(url):
        return has_table(url, _keys) and bool(run_beside(url, _ANY_VALID, {}))
    path = sqlite_path(url)
    if not path.exists():
        return False
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if (_keys.name,) not in tables.fetchall():
                return False
            return connection.execute(_ANY_VALID.sql).fetchone() is not None
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise DatabaseError(f"cannot open the SQLite database {path}: {error}") from error


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret."""

    id: str
    principal: str
    role: Role
    created_at: int
    revoked_at: int | None


class ApiKeys:
    """The keys in one database.

    A SQLite file is made, or brought up to date; a PostgreSQL database has to have its schema.

    Raises:
        DatabaseError: The database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        prepare_beside(url, _keys)

    def create(self, principal: str, role: Role) -> tuple[ApiKey, str]:
        """Make a key for a principal; return it with its secret, which is shown this once."""
        secret = new_secret()
        key = ApiKey(f"key_{secrets.token_hex(6)}", principal, role, now_ms(), None)
        run_beside(
            self._url,
            _INSERT,
            {
                "id": key.id,
                "principal": key.principal,
                "role": key.role.value,
                "secret_hash": hash_secret(secret),
                "created_at": key.created_at,
            },
        )
        return key, secret

    def list(self) -> "list[ApiKey]":
        """Return all keys, the revoked ones included."""
        rows = run_beside(self._url, _LIST, {})
        return [ApiKey(row[0], row[1], Role(row[2]), row[3], row[4]) for row in rows]

    def revoke(self, key_id: str) -> bool:
        """Revoke a key; a running gateway refuses it within a second.

        Returns:
            False where no valid key has this id.
        """
        return bool(run_beside(self._url, _REVOKE, {"key_id": key_id, "now": now_ms()}))
