"""Completions that somebody awaits, found by an unguessable id in the callback URL."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from concurrent.futures import Future, InvalidStateError
from weakref import WeakValueDictionary

from nexus_spec import Completion

__all__ = ["ExpectedCompletion", "ExpectedCompletions"]

_NONCE_CHARACTERS = 22  # 16 random bytes in base64


class ExpectedCompletion:
    """One completion to come: the URL to hand out, and the place to wait.

    The representation leaves the URL out: whoever knows it can complete the operation.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # Of concurrent.futures, because the receiver may be served by another thread's loop.
        self._arrived: Future[Completion] = Future()

    @property
    def completion(self) -> Completion | None:
        """The completion, None until it has come."""
        return self._arrived.result() if self._arrived.done() else None

    async def wait(self, timeout: float | None = None) -> Completion:
        """Wait for the completion, which may have come already; any number may wait.

        Raises:
            TimeoutError: it did not come within `timeout` seconds.
        """
        if self._arrived.done():
            return self._arrived.result()
        # The shield keeps one waiter's timeout or cancellation from everybody else.
        arrived = asyncio.shield(asyncio.wrap_future(self._arrived))
        async with asyncio.timeout(timeout):
            return await arrived

    def deliver(self, completion: Completion) -> None:
        """Hand over the completion; the first one counts, as deliveries may repeat."""
        try:
            self._arrived.set_result(completion)
        except InvalidStateError:
            pass  # A duplicate: an operation ends once.

    def __repr__(self) -> str:
        """Tell only whether it has come."""
        return f"<ExpectedCompletion {'arrived' if self._arrived.done() else 'pending'}>"


class ExpectedCompletions:
    """The ids that were handed out under one public URL.

    An id is a random number and its keyed hash, so an id that was issued here is known for ever
    without a list of them: a duplicate, or a completion whose waiter is gone, is told
    from a forgery.
    """

    def __init__(self, public_url: str) -> None:
        self._public_url = public_url.rstrip("/")
        self._key = secrets.token_bytes(32)
        # Weak: when the last handle is gone, nobody can ask for the completion any more.
        self._waiting: WeakValueDictionary[str, ExpectedCompletion] = WeakValueDictionary()

    def expect(self) -> ExpectedCompletion:
        """Make a new id and the completion that will come under it."""
        nonce = secrets.token_urlsafe(16)
        issued_id = nonce + self._tag(nonce)
        expected = ExpectedCompletion(f"{self._public_url}/{issued_id}")
        self._waiting[issued_id] = expected
        return expected

    def issued(self, id: str) -> bool:
        """Tell whether this id was made here."""
        nonce, tag = id[:_NONCE_CHARACTERS], id[_NONCE_CHARACTERS:]
        return hmac.compare_digest(self._tag(nonce).encode(), tag.encode())

    def deliver(self, id: str, completion: Completion) -> None:
        """Hand a completion to whoever awaits it; without anybody it is dropped."""
        expected = self._waiting.get(id)
        if expected is not None:
            expected.deliver(completion)

    def _tag(self, nonce: str) -> str:
        return hashlib.blake2b(nonce.encode(), key=self._key, digest_size=16).hexdigest()
