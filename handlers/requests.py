"""What the engine is asked for and what it answers: values, free of HTTP."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from nexusrpc import Content, Link

from callbacks.outbox import Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationKey:
    """Who asks for what; a token counts only together with this."""

    endpoint: str
    service: str
    operation: str
    caller: str  # the principal's name; empty where callers are not authenticated


@dataclass(slots=True, kw_only=True)
class StartRequest:
    """A start operation request, read and checked."""

    key: OperationKey
    request_id: str
    body: bytes
    content_headers: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # the caller's own, lower case
    callback: Registration | None = None
    links: tuple[Link, ...] = ()
    request_timeout_seconds: float | None = None
    operation_timeout: timedelta | None = None
    wait_seconds: float = 0.0  # Prefer: wait
    trace_context: str | None = None
    disconnected: Callable[[], Awaitable[None]] | None = None  # returns when the caller hangs up


@dataclass(slots=True)
class Started:
    """The operation runs on; the caller gets its token."""

    token: str
    links: tuple[Link, ...] = ()


@dataclass(slots=True)
class Succeeded:
    """The operation is done."""

    content: Content
    links: tuple[Link, ...] = ()


Outcome = Started | Succeeded
