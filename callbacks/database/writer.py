"""Group commit: writes that wait at the same moment share one transaction and one fsync."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from callbacks.database.errors import DatabaseClosed
from callbacks.database.statements import Write

T = TypeVar("T")

Commit = Callable[[Sequence[Write[Any]]], list[Any]]


class GroupCommit:
    """Queues writes and commits whatever has gathered by the end of the loop's turn.

    There is no timer: a lone write is committed at once, and under load batches form by
    themselves. The commit runs on the event loop; a writer thread would have to win the
    interpreter lock back at every statement and starves beside a busy loop.
    """

    def __init__(self, commit: Commit, *, most: int = 256) -> None:
        """Make a queue.

        Take `commit`, which returns a result or an exception for each write, and the largest
        number of writes in one transaction.
        """
        self._commit = commit
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Write[Any], asyncio.Future[Any]]] = deque()
        self._scheduled = False
        self._closing = False
        self.batches = 0
        self.writes = 0

    def write(self, write: Write[T]) -> asyncio.Future[T]:
        """Queue a write; the future has its answer once it is committed.

        Cancelling the future forgets the answer, never the write.

        Raises:
            DatabaseClosed: The store is closing.
        """
        if self._closing:
            raise DatabaseClosed("the store is closing")
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((write, done))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return done

    def close(self) -> None:
        """Commit what waits and refuse what comes later."""
        self._closing = True
        while self._waiting:
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if not self._waiting:
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        try:
            answers = self._commit([write for write, _ in batch])
        except Exception as error:  # noqa: BLE001  # each write is told
            answers = [error] * len(batch)
        self.batches += 1
        self.writes += len(batch)
        for (_, done), answer in zip(batch, answers, strict=True):
            if done.done():
                continue
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
