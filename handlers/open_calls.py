"""Calls of operations that were ended without their handler: nobody is left to cancel them."""

import asyncio
import logging
from random import random

from callbacks.database import Database, DatabaseClosed
from handlers.call_journal import OpenCall, open_calls
from handlers.clock import Clock
from handlers.outgoing_calls import CallNotAnswered, CallNotMade, OutgoingCalls
from handlers.poll_times import retry_seconds
from handlers.store.journals import LOAD_JOURNAL, read_entry

logger = logging.getLogger(__name__)


class OpenCalls:
    """Asks the other side to cancel them, as far as that can be done while this process lives.

    Args:
        database: Where the journals are.
        outgoing: Sends requests.
        clock: The time.
        seconds: For how long a call is asked to cancel.
    """

    def __init__(
        self, database: Database, outgoing: OutgoingCalls, clock: Clock, *, seconds: float
    ) -> None:
        self._database = database
        self._outgoing = outgoing
        self._clock = clock
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def cancel(self, token: str) -> None:
        """Begin to cancel the calls of an operation that has ended."""
        task = asyncio.get_running_loop().create_task(self._cancel_all(token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is not done yet."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cancel_all(self, token: str) -> None:
        try:
            rows = await self._database.fetch(LOAD_JOURNAL, {"token": token})
            calls = open_calls(read_entry(row) for row in rows)
            await asyncio.gather(*(self._cancel(token, call) for call in calls))
        except DatabaseClosed:
            pass
        except Exception:
            logger.exception("cannot cancel the operation's calls", extra={"token": token})

    async def _cancel(self, token: str, call: OpenCall) -> None:
        began = self._clock.now_ms()
        while True:
            try:
                await self._outgoing.cancel(call.target, call.token)
                return
            except CallNotAnswered as unanswered:
                elapsed = self._clock.now_ms() - began
                seconds = max(retry_seconds(elapsed, random()), unanswered.retry_after_seconds)
                error: CallNotMade = unanswered
                if elapsed / 1000 + seconds < self._seconds:
                    await asyncio.sleep(seconds)
                    continue
            except CallNotMade as refused:
                error = refused
            logger.warning(
                "a call was not canceled",
                extra={"token": token, "step": call.key, "error": str(error)},
            )
            return
