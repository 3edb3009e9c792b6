"""Deadlines of operations that no handler runs here: started elsewhere, paused, not served."""

import asyncio
import logging

from callbacks.database import DatabaseClosed, SqliteDatabase
from handlers.clock import now_ms
from handlers.endings import Endings, failed
from handlers.store.operations import LOAD, read_operation

logger = logging.getLogger(__name__)

TIMED_OUT = "operation timed out"


class Deadlines:
    """Ends operations as failed when their time is up, without running any of their code."""

    def __init__(self, database: SqliteDatabase, endings: Endings) -> None:
        self._database = database
        self._endings = endings
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._timers)

    def watch(self, token: str, deadline_at: int | None) -> None:
        """End the operation at its deadline (milliseconds since 1970), if it has one."""
        self.forget(token)
        if deadline_at is None:
            return
        left = max(0, deadline_at - now_ms()) / 1000
        self._timers[token] = self._loop.call_later(left, self._passed, token)

    def forget(self, token: str) -> None:
        """Watch an operation no longer: it has ended, or a handler runs it again."""
        if (timer := self._timers.pop(token, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Forget them all; the next process watches them."""
        for token in list(self._timers):
            self.forget(token)

    def _passed(self, token: str) -> None:
        del self._timers[token]
        task = self._loop.create_task(self._time_out(token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _time_out(self, token: str) -> None:
        try:
            for row in await self._database.fetch(LOAD, {"token": token}):
                await self._endings.finish_stored(read_operation(row), failed(TIMED_OUT))
        except DatabaseClosed:
            pass  # the next process finds the deadline passed
        except Exception:
            logger.exception("cannot time an operation out", extra={"token": token})
