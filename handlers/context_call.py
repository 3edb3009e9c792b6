"""A call of the context that a handler has made and is still to await."""

from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from handlers.execution import Execution

T = TypeVar("T")


class ContextCall(Coroutine[Any, Any, T]):
    """A coroutine that knows whether it was ever awaited.

    Python tells of a forgotten `await` only when it happens to collect the coroutine, by a
    warning; in a durable handler it is a step that silently never happens.

    Args:
        execution: Knows which calls are still to be awaited.
        what: The call, as the handler's author wrote it, for a message.
        make: Makes the coroutine that does it.
    """

    __slots__ = ("__weakref__", "_coroutine", "_make", "_unawaited", "what")

    def __init__(
        self, execution: "Execution", what: str, make: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        self.what = what
        self._make = make
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._unawaited = execution.unawaited
        self._unawaited.add(self)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()

    def send(self, value: Any) -> Any:
        """Run on to the next wait: for a task that was made of this call."""
        return self._begin().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error where the call waits: for a task that was made of this call."""
        return self._begin().throw(*error)

    def close(self) -> None:
        """Drop the call; one that was dropped on purpose was not forgotten."""
        self._unawaited.discard(self)
        if self._coroutine is not None:
            self._coroutine.close()

    def _begin(self) -> Coroutine[Any, Any, T]:
        coroutine = self._coroutine
        if coroutine is None:
            self._unawaited.discard(self)
            coroutine = self._coroutine = self._make()
        return coroutine
