"""Group commit: writes that wait at the same moment share one transaction and one fsync."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from callbacks.database.errors import DatabaseClosed
from callbacks.database.statements import ALONE, Write

T = TypeVar("T")

Commit = Callable[[Sequence[Write[Any]]], list[Any] | Awaitable[list[Any]]]
_Waiting = tuple[Write[Any], asyncio.Future[Any]]

# How many waiting writes are looked at for one transaction, as a multiple of those it may hold:
# a long queue for one subject must not be gone through at every commit.
_LOOK_AHEAD = 4


class GroupCommit:
    """Queues writes and commits whatever has gathered by the end of the loop's turn.

    There is no timer: a lone write is committed at once, and under load batches form by
    themselves, behind the commit that is under way. Commits run on the event loop, one at a time;
    a writer thread would have to win the interpreter lock back at every statement and starves
    beside a busy loop.
    """

    def __init__(self, commit: Commit, *, most: int = 256, subjects_apart: bool = False) -> None:
        """Make a queue.

        Take `commit`, which returns a result or an exception for each write, or an awaitable of
        that; the largest number of writes in one transaction; and whether two writes with the
        same subject go into different ones, in order, and those that want to be alone are.
        """
        self._commit = commit
        self._most = most
        self._subjects_apart = subjects_apart
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._scheduled = False
        self._under_way: asyncio.Future[list[Any]] | None = None
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
        self._soon()
        return done

    def close(self) -> None:
        """Commit what waits and refuse what comes later; for a `commit` that awaits nothing."""
        self._closing = True
        while self._waiting:
            self._flush()

    async def aclose(self) -> None:
        """Commit what waits and refuse what comes later."""
        self._closing = True
        while self._waiting or self._under_way is not None:
            if self._under_way is None:
                self._flush()
            else:
                await asyncio.wait([self._under_way])

    def _soon(self) -> None:
        if self._waiting and not self._scheduled and self._under_way is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if not self._waiting or self._under_way is not None:
            return
        batch = self._next_batch()
        try:
            answers = self._commit([write for write, _ in batch])
        except Exception as error:  # noqa: BLE001  # each write is told
            answers = [error] * len(batch)
        if isinstance(answers, list):
            self._settle(batch, answers)
        else:
            self._under_way = asyncio.ensure_future(answers)
            self._under_way.add_done_callback(partial(self._landed, batch))

    def _next_batch(self) -> list[_Waiting]:
        if not self._subjects_apart:
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        batch: list[_Waiting] = []
        later: list[_Waiting] = []
        subjects: set[str] = set()
        for _ in range(min(len(self._waiting), self._most * _LOOK_AHEAD)):
            waiting = self._waiting.popleft()
            subject = waiting[0].subject
            if subject is not None and (subject in subjects or (subject == ALONE and batch)):
                later.append(waiting)
                continue
            if subject is not None:
                subjects.add(subject)
            batch.append(waiting)
            if len(batch) == self._most or subject == ALONE:
                break
        self._waiting.extendleft(reversed(later))
        return batch

    def _landed(self, batch: Sequence[_Waiting], under_way: asyncio.Future[list[Any]]) -> None:
        self._under_way = None
        if under_way.cancelled():
            error: BaseException | None = DatabaseClosed("the store was closed")
        else:
            error = under_way.exception()
        self._settle(batch, [error] * len(batch) if error is not None else under_way.result())

    def _settle(self, batch: Sequence[_Waiting], answers: Sequence[Any]) -> None:
        self.batches += 1
        self.writes += len(batch)
        for (_, done), answer in zip(batch, answers, strict=True):
            if done.done():
                continue
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)
        self._soon()
