"""Which call of a handler is which: the keys of its calls, and their order on every run.

Within one asyncio task the calls of a handler follow each other, so the same code asks for what is
recorded in the order in which it was recorded. Code that asks for something else has changed under
the operation, and nothing that it does from there on can be trusted.
"""

import asyncio
import contextvars
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from handlers.errors import Diverged
from handlers.journal import Interrupt, Kind, RecordedCall


@dataclass(eq=False, slots=True)
class Scope:
    """The part of a handler that one asyncio task runs; it numbers the calls made in it.

    Branches of an `asyncio.gather` count on their own, or they would swap their results whenever
    they were scheduled in another order.
    """

    path: str
    task: "asyncio.Task[Any] | None"
    now_ms: int  # when the last call in this scope was recorded: the same on every run
    recorded: Sequence[RecordedCall] = ()
    visited: int = 0  # so many of them the code has asked for in this run
    counters: dict[str, int] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    branches: int = 0

    def next_recorded(self) -> RecordedCall | None:
        """Return the next call of earlier runs; patch markers that nobody asks for are none."""
        recorded = self.recorded
        for place in range(self.visited, len(recorded)):
            if recorded[place].kind != Kind.PATCH:
                return recorded[place]
        return None


_scope: contextvars.ContextVar[Scope] = contextvars.ContextVar("nexus_gateway_scope")


class Scopes:
    """The scopes of one run of a handler.

    Args:
        task: The handler's main task.
        now_ms: When the operation was started.
        recorded: The calls of earlier runs, by scope.
    """

    __slots__ = (
        "_recorded",
        "branches",
        "root",
    )

    def __init__(
        self,
        task: "asyncio.Task[Any]",
        now_ms: int,
        recorded: Mapping[str, Sequence[RecordedCall]],
    ) -> None:
        self._recorded = recorded
        self.root = Scope("", task, now_ms, recorded.get("", ()))
        self.branches: WeakSet[asyncio.Task[Any]] = WeakSet()
        _scope.set(self.root)

    def current(self) -> Scope:
        """Return the scope of the calling task.

        Raises:
            RuntimeError: It is no task of the handler.
        """
        scope = _scope.get(None)
        if scope is None:
            raise RuntimeError("a DurableContext works only inside its own handler")
        task = asyncio.current_task()
        if scope.task is not task:
            scope = self.branch(scope)
            scope.task = task
            _scope.set(scope)
            if task is not None:
                self.branches.add(task)
        return scope

    def branch(self, parent: Scope) -> Scope:
        """Return the scope for the next task that a scope begins."""
        parent.branches += 1
        path = f"{parent.path}{parent.branches}/"
        return Scope(path, None, parent.now_ms, self._recorded.get(path, ()))

    def begin_call(self, name: str) -> tuple[Scope, str]:
        """Return the scope and the key of a new call."""
        scope = self.current()
        number = scope.counters.get(name, 0) + 1
        scope.counters[name] = number
        return scope, f"{scope.path}{name}#{number}"

    def is_recorded(
        self, scope: Scope, key: str, kind: Kind, interrupt: Interrupt | None, interrupted: bool
    ) -> bool:
        """Whether an earlier run made this call, as the next one of its scope.

        Raises:
            Diverged: It made another one here.
        """
        if scope.visited == len(scope.recorded):
            return False
        expected = scope.next_recorded()
        if expected is None:
            return False
        if expected.key == key:
            scope.visited = scope.recorded.index(expected, scope.visited) + 1
            return True
        if (
            interrupt is not None
            and expected.ordinal > interrupt.ordinal
            and (key in interrupt.pending or not interrupted)
        ):
            # It was under way when the handler was interrupted, and so never recorded; what
            # follows are the calls of the cleanup.
            return False
        raise Diverged(
            f"the journal has {expected} at this place, the code now asks for {kind} {key!r}"
        )

    def is_patched(self, scope: Scope, key: str) -> bool | None:
        """Whether an operation takes the new code here; None where it is for now to decide."""
        recorded = scope.recorded
        for place in range(scope.visited, len(recorded)):
            if recorded[place].kind != Kind.PATCH:
                return False
            if recorded[place].key == key:
                scope.visited = place + 1
                return True
        return None

    def check_end(self) -> None:
        """Check that the code has asked for everything that earlier runs did.

        Raises:
            Diverged: It ended before.
        """
        if self.root.visited < len(self.root.recorded):
            expected = self.root.next_recorded()
            if expected is not None:
                raise Diverged(
                    f"the code ended without asking for {expected}, which the journal has"
                )


def in_scope(scope: Scope) -> contextvars.Context:
    """Return a context in which a task begins as that scope."""
    context = contextvars.copy_context()
    context.run(_scope.set, scope)
    return context
