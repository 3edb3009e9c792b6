"""Answers about operations, and waiting for their end, wherever they run."""

import asyncio
import math
from collections.abc import Callable

from nexusrpc import HandlerError, HandlerErrorType

from callbacks.database import Database
from handlers.endings import Endings, Waiter, ended_of, outcome
from handlers.live_operation import links_from_json
from handlers.requests import OperationKey, Outcome, Started, Succeeded
from handlers.store.operations import LOAD, StoredOperation, read_operation
from handlers.store.outside import Watch
from nexus_spec import OperationState

# An operation that is at work here most likely ends here within this time, and no write is needed
# to hear of it; later it may have gone to another process.
_UNWATCHED_SECONDS = 1.0


def unknown_token() -> HandlerError:
    """Return the error for a token that is no operation of this caller under this path."""
    return HandlerError("no such operation", type=HandlerErrorType.NOT_FOUND)


class Asking:
    """Reads operations and waits for their ends.

    Args:
        database: Where operations are.
        endings: Tells of the ends that this process brings about, or hears of.
        is_live: Whether an operation is in this process's memory.
    """

    def __init__(
        self, database: Database, endings: Endings, is_live: Callable[[str], bool]
    ) -> None:
        self._database = database
        self._endings = endings
        self._is_live = is_live

    async def load(self, token: str) -> StoredOperation:
        """Return an operation.

        Raises:
            HandlerError: NOT_FOUND.
        """
        rows = await self._database.fetch(LOAD, {"token": token})
        if not rows:
            raise unknown_token()
        return read_operation(rows[0])

    async def authorized(self, key: OperationKey, token: str) -> StoredOperation:
        """Return an operation, if it is this caller's and of this service and operation.

        Raises:
            HandlerError: NOT_FOUND.
        """
        stored = await self.load(token)
        if (stored.endpoint, stored.service, stored.operation, stored.caller) != (
            key.endpoint,
            key.service,
            key.operation,
            key.caller,
        ):
            # Not "forbidden": that would tell that the token exists.
            raise unknown_token()
        return stored

    async def result(self, key: OperationKey, token: str, wait_seconds: float) -> Succeeded | None:
        """Return an operation's result; None while it runs, after waiting for it.

        Raises:
            HandlerError: NOT_FOUND.
            OperationError: The operation failed or was canceled.
        """
        waiter = self.expect(token) if wait_seconds > 0 else None
        try:
            stored = await self.authorized(key, token)
            if waiter is None or stored.state.ended:
                answer = _answer(stored)
            else:
                answer = await self.outcome(token, wait_seconds, waiter)
        finally:
            if waiter is not None:
                self.forget(token, waiter)
        return answer if isinstance(answer, Succeeded) else None

    async def state(self, key: OperationKey, token: str) -> OperationState:
        """Return an operation's state as its caller sees it.

        Raises:
            HandlerError: NOT_FOUND.
        """
        stored = await self.authorized(key, token)
        return OperationState(stored.state.value if stored.state.ended else "running")

    def expect(self, token: str) -> Waiter:
        """Begin to wait for an operation's end, before it is known to be running; see `forget`."""
        return self._endings.will_end(token)

    def forget(self, token: str, waiter: Waiter) -> None:
        """Wait no longer."""
        self._endings.no_longer_waits(token, waiter)

    async def outcome(
        self, token: str, wait_seconds: float, waiter: Waiter | None = None
    ) -> Outcome:
        """Return how an operation ended, or that it runs, after waiting so long for its end.

        Args:
            token: The operation.
            wait_seconds: How long to wait.
            waiter: From `expect`, where the operation was seen to run after that.

        Raises:
            HandlerError: NOT_FOUND.
            OperationError: The operation failed or was canceled.
        """
        if wait_seconds > 0:
            answer = await self._until_end(token, wait_seconds, waiter)
            if answer is not None:
                return answer
        return _answer(await self.load(token))

    async def _until_end(self, token: str, seconds: float, waiter: Waiter | None) -> Outcome | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        watch_at = math.inf
        if self._database.shared:
            watch_at = loop.time() + (_UNWATCHED_SECONDS if self._is_live(token) else 0.0)
        while not self._endings.releasing and (now := loop.time()) < until:
            # Registered first and read second: an end between the two is not missed.
            is_read = waiter is not None
            if waiter is None:
                waiter = self.expect(token)
            timer = None
            try:
                if now >= watch_at:
                    watch_at = math.inf
                    await asyncio.shield(self._database.write(Watch(token)))
                    is_read = False
                if not is_read and (stored := await self.load(token)).state.ended:
                    return _answer(stored)
                timer = loop.call_at(min(until, watch_at), _time_is_over, waiter)
                if (answer := await waiter) is not None:
                    return answer
            finally:
                if timer is not None:
                    timer.cancel()
                self.forget(token, waiter)
            waiter = None
        return None


def _time_is_over(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _answer(stored: StoredOperation) -> Outcome:
    links = links_from_json(stored.handler_links)
    return outcome(ended_of(stored), links) if stored.state.ended else Started(stored.token, links)
