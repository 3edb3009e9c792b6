"""What can go wrong between this caller and a peer, beside the errors that the peer itself reports.

```
NexusError                      never raised itself
├─ HandlerError                 the peer refused or failed the request        (from nexusrpc)
├─ OperationError               the operation failed or was canceled          (from nexusrpc)
└─ ClientError                  never raised itself
   ├─ Unreachable               nothing was sent: the peer knows nothing of the request
   ├─ UnknownOutcome            something was sent: the peer may have acted on it
   ├─ MalformedResponse         the peer answered outside of the protocol
   ├─ NotSupported              the peer lacks an extension that was asked for
   ├─ StillRunning              the operation did not end in the time given (also a TimeoutError)
   └─ ServiceUnresolved         an Operation does not tell which service it belongs to
```
"""

from __future__ import annotations

from nexus_spec import NexusError

__all__ = [
    "ClientError",
    "MalformedResponse",
    "NotSupported",
    "ServiceUnresolved",
    "StillRunning",
    "UnknownOutcome",
    "Unreachable",
]


class ClientError(NexusError):
    """A call failed on this side, or on the way; never raised itself."""


class Unreachable(ClientError):
    """The request was never sent, so it is safe to say that it had no effect."""


class UnknownOutcome(ClientError):
    """The request was sent at least in part and no whole answer came back.

    The peer may have acted on it. Repeating is safe for what the protocol makes idempotent: a start
    under the same request id, a cancel, a question, a completion.
    """


class MalformedResponse(ClientError):
    """The peer answered, and the answer is not one that the protocol allows.

    `status` is the HTTP status of the answer where there was one.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotSupported(ClientError):
    """The peer has no such route: asking for results and states is an extension of the protocol."""


class StillRunning(ClientError, TimeoutError):
    """The operation has not ended within the time that the caller gave; it may be awaited again.

    `token` is the operation's: `NexusClient.handle` makes a new handle of it.
    """

    def __init__(self, message: str, *, token: str | None = None) -> None:
        super().__init__(message)
        self.token = token


class ServiceUnresolved(ClientError, ValueError):
    """No service, or more than one, defines the operation: the caller must name it."""
