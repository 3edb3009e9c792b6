"""What can go wrong on the way to a callback URL.

```
CallbackError
├─ UrlRefused          the URL, or the policy for its text, forbids calling it
│  └─ AddressRefused   the host resolved to an address that may not be called
├─ HeaderRefused       a header that may not be sent to a callback
└─ NotSigned           no key to sign with can be had at this moment
```
"""

from clients.errors import Unreachable
from nexus_spec import NexusError

__all__ = ["AddressRefused", "CallbackError", "HeaderRefused", "NotSigned", "UrlRefused"]


class CallbackError(NexusError):
    """A callback that cannot be made; the base of this package's errors."""


class UrlRefused(CallbackError):
    """The callback URL may not be called; the message is fit for the caller who gave it."""


class AddressRefused(UrlRefused, Unreachable):
    """The host's address may not be called; found at dial, so nothing was sent."""


class HeaderRefused(CallbackError):
    """A callback header may not be sent; the message is fit for the caller who gave it."""


class NotSigned(CallbackError):
    """The completion could not be signed, and so was not sent; it is tried again."""
