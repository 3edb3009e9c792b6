"""Who may call: API keys with a principal and a role, or nobody but this machine."""

import hashlib
import ipaddress
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import sqlalchemy as sa
from nexusrpc import HandlerError, HandlerErrorType

from callbacks.database import Database, Statement, table_of
from gateway.asgi import Scope
from gateway.records import ApiKeyRecord
from gateway.roles import Role
from nexus_spec import Headers

_KEY_PREFIX = "nxk_"
_TRUSTED_SECONDS = 1.0
_CACHED_KEYS = 10_000

_keys = table_of(ApiKeyRecord)
_FIND_KEY = Statement(
    sa.select(_keys.c.principal, _keys.c.role).where(
        _keys.c.secret_hash == sa.bindparam("secret_hash"), _keys.c.revoked_at.is_(None)
    )
)
# A revoked one counts too: revoking the last key must not open the gateway to anybody.
_ANY_KEY = Statement(sa.select(_keys.c.id).limit(1))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request; the name is empty where callers are not authenticated."""

    name: str
    role: Role


ANYBODY = Principal("", Role.OPERATE)


def new_secret() -> str:
    """Return a new API key: 256 random bits, so that a plain hash of it is safe to store."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """Return what is stored of an API key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class Access:
    """Decides who makes a request.

    With any API key in the database every request needs one. Without, only this machine may call,
    and then a web page in its browser may not: Host and Origin must be this machine's, or a page
    could reach the gateway through a name that it resolves to 127.0.0.1.

    Args:
        database: Where the keys are.
        allow_unauthenticated: Let requests without a key pass as nobody in particular.
        public_url: The address under which the gateway is known.
    """

    def __init__(
        self, database: Database, *, allow_unauthenticated: bool, public_url: str | None
    ) -> None:
        self._database = database
        self._allow_unauthenticated = allow_unauthenticated
        public = urlsplit(public_url).hostname if public_url is not None else None
        self._own_hosts = frozenset({"localhost", (public or "localhost").lower()})
        self._known: dict[bytes, tuple[Principal, float]] = {}
        self._locked = False
        self._locked_at = float("-inf")

    async def principal(self, scope: Scope, headers: Headers) -> Principal:
        """Return who makes a request.

        Raises:
            HandlerError: UNAUTHENTICATED without a key where one is needed, or with a wrong one;
                UNAUTHORIZED from elsewhere, or for a web page, while there are no keys.
        """
        authorization = headers.get("authorization")
        if authorization is not None and authorization[:7].lower() == "bearer ":
            return await self._principal_of_key(authorization[7:].strip())
        if self._allow_unauthenticated:
            return ANYBODY
        if await self._has_keys():
            raise HandlerError(
                "an API key is needed: send Authorization: Bearer KEY",
                type=HandlerErrorType.UNAUTHENTICATED,
            )
        self._check_local(scope, headers)
        return ANYBODY

    async def _principal_of_key(self, secret: str) -> Principal:
        now = time.monotonic()
        hashed = hash_secret(secret)
        known = self._known.get(hashed)
        if known is not None and now - known[1] < _TRUSTED_SECONDS:
            return known[0]
        rows = await self._database.fetch(_FIND_KEY, {"secret_hash": hashed})
        if not rows:
            self._known.pop(hashed, None)
            raise HandlerError(
                "the API key is unknown or revoked", type=HandlerErrorType.UNAUTHENTICATED
            )
        principal = Principal(rows[0][0], Role(rows[0][1]))
        if len(self._known) >= _CACHED_KEYS:
            self._known.clear()
        self._known[hashed] = (principal, now)
        return principal

    async def _has_keys(self) -> bool:
        now = time.monotonic()
        if now - self._locked_at >= _TRUSTED_SECONDS:
            self._locked = bool(await self._database.fetch(_ANY_KEY, {}))
            self._locked_at = now
        return self._locked

    def _check_local(self, scope: Scope, headers: Headers) -> None:
        client = scope.get("client")
        if client is not None and not is_loopback(client[0]):
            raise HandlerError(
                "without API keys only this machine may call: create one with "
                "`nexus-gateway keys create NAME`",
                type=HandlerErrorType.UNAUTHORIZED,
            )
        host = headers.get("host")
        if host is not None and not _is_own(host, self._own_hosts):
            raise HandlerError(
                f"Host {host[:100]!r} is not this gateway's: call it as 127.0.0.1 or localhost, "
                "or give it its name with --public-url",
                type=HandlerErrorType.UNAUTHORIZED,
            )
        origin = headers.get("origin")
        if origin is not None and not _is_own(urlsplit_netloc(origin), self._own_hosts):
            raise HandlerError(
                "requests from other web pages are refused", type=HandlerErrorType.UNAUTHORIZED
            )


@lru_cache(maxsize=1024)  # asked of every request
def _is_own(netloc: str, own_hosts: frozenset[str]) -> bool:
    try:
        name = urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return False
    return name in own_hosts or is_loopback(name)


def urlsplit_netloc(origin: str) -> str:
    """Return the host and port of an `Origin`; something that is nobody's where it has none."""
    try:
        return urlsplit(origin).netloc or "?"
    except ValueError:
        return "?"


@lru_cache(maxsize=1024)  # asked of every request
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require(principal: Principal, role: Role) -> None:
    """Check that a principal may do what only a role may.

    Raises:
        HandlerError: UNAUTHORIZED.
    """
    if role is Role.OPERATE and principal.role is not Role.OPERATE:
        raise HandlerError(
            "this needs an API key with role operate", type=HandlerErrorType.UNAUTHORIZED
        )
