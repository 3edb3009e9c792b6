"""What an asyncio task waits for, as far as that can be told from outside.

asyncio has no public way to ask this before Python 3.14, so this looks at what a task's coroutines
hold. Whatever it does not know counts as something of the handler's own, which keeps the handler
in memory: the cost of an unknown shape is memory, never a lost or late continuation.
"""

import asyncio
import gc
from collections.abc import Iterable, Iterator
from typing import Any

from handlers.presence import Presence

_ENDS_OF_TASK_GROUPS = {
    code.__code__
    for name in ("__aexit__", "_aexit")
    if (code := getattr(asyncio.TaskGroup, name, None)) is not None
}
_WAIT = getattr(getattr(asyncio.tasks, "_wait", None), "__code__", None)


def rests(task: "asyncio.Task[Any]", presence: Presence) -> bool:
    """Whether a task, and all that it waits for, waits in calls that may go on out of memory."""
    return _rests(task, presence, set())


def _rests(
    task: "asyncio.Future[Any]", presence: Presence, seen: "set[asyncio.Future[Any]]"
) -> bool:
    if task.done() or task in seen:
        return True
    seen.add(task)
    if not isinstance(task, asyncio.Task):
        children = getattr(task, "_children", None)  # of asyncio.gather
        return children is not None and all(_rests(child, presence, seen) for child in children)
    coroutines = list(_coroutines(task))
    if any(_is_timeout(held) for coroutine in coroutines for held in gc.get_referents(coroutine)):
        return False
    if task in presence.durable:
        return True
    if task in presence.gathering:
        others: Iterable[Any] | None = presence.gathering[task]
    else:
        others = _awaited(task, coroutines)
    return others is not None and all(_rests(other, presence, seen) for other in others)


def _coroutines(task: "asyncio.Task[Any]") -> Iterator[Any]:
    """Yield the coroutines of a task, from the outermost to the one that waits."""
    coroutine: Any = task.get_coro()
    while coroutine is not None and hasattr(coroutine, "cr_frame"):
        yield coroutine
        coroutine = coroutine.cr_await


def _awaited(task: "asyncio.Task[Any]", coroutines: list[Any]) -> Iterable[Any] | None:
    """Return the tasks that a task waits for; None where it waits for something else."""
    if coroutines and (frame := coroutines[-1].cr_frame) is not None:
        if frame.f_code in _ENDS_OF_TASK_GROUPS:
            return list(frame.f_locals["self"]._tasks)  # noqa: SLF001  # nothing public tells
        if frame.f_code is _WAIT:
            return list(frame.f_locals["fs"])
    awaited = getattr(task, "_fut_waiter", None)
    if isinstance(awaited, asyncio.Task) or hasattr(awaited, "_children"):
        return [awaited]
    return None


def _is_timeout(held: object) -> bool:
    """Whether a coroutine is inside an `asyncio.timeout` that is still to come."""
    timeout = getattr(held, "__self__", None)
    return isinstance(timeout, asyncio.Timeout) and timeout.when() is not None
