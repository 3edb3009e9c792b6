"""What can go wrong on the way to a callback URL.

```
CallbackError
├─ UrlRefused          the URL, or the policy for its text, forbids calling it
│  └─ AddressRefused   the host resolved to an address that may not be called
├─ HeaderRefused       a header that may not be sent to a callback
└─ NotSent             this process could not send at this moment
```
"""

from clients.errors import Unreachable
from nexus_spec import NexusError

__all__ = ["AddressRefused", "CallbackError", "HeaderRefused", "NotSent", "UrlRefused"]


class CallbackError(NexusError):
    """A callback that cannot be made; the base of this package's errors."""


class UrlRefused(CallbackError):
    """The callback URL may not be called; the message is fit for the caller who gave it."""


class AddressRefused(UrlRefused, Unreachable):
    """The host's address may not be called; found at dial, so nothing was sent."""


class HeaderRefused(CallbackError):
    """A callback header may not be sent; the message is fit for the caller who gave it."""


class NotSent(CallbackError):
    """This process had nothing to send with, no key or no socket: its trouble, not the peer's."""
