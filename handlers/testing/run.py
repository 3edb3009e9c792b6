"""An operation that a test has started."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from handlers.store.journals import JournalEntry

if TYPE_CHECKING:
    from handlers.requests import OperationKey, Succeeded
    from handlers.testing.gateway import TestGateway

OutputT = TypeVar("OutputT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One entry of an operation's journal: something that happened, and never happens again.

    Attributes:
        key: What it is, such as `charge#1`; `2/charge#1` is of the second branch of a gather.
        kind: `step`, `timer`, `signal`, `call`, ...
        attempts: How often the step's function ran.
        output: The step's result, or what a signal said, as plain JSON.
        error: The class and text of the error that a step failed with for good.
        at: When it was recorded.
    """

    key: str
    kind: str
    attempts: int
    output: Any
    error: str | None
    at: datetime


class Run(Generic[OutputT]):
    """An operation that was started at a `TestGateway`.

    Attributes:
        token: Its token.
    """

    def __init__(
        self,
        gateway: "TestGateway",
        key: "OperationKey",
        token: str,
        output_type: Any,
        answer: "Succeeded | None" = None,
    ) -> None:
        self.token = token
        self._gateway = gateway
        self._key = key
        self._output_type = output_type
        self._answer = answer

    def __repr__(self) -> str:
        return f"<Run of {self._key.service}/{self._key.operation}, {self.token or 'answered'}>"

    # ------------------------------------------------------------ what a caller does

    async def result(self) -> OutputT:
        """Return the operation's result, after as much time as it takes; none of it is real.

        Raises:
            nexusrpc.OperationError: It failed or was canceled.
            Stuck: It cannot go on by itself.
        """
        answer = self._answer
        if answer is None:
            await self._gateway.until_ended(self.token)
            answer = await self._gateway.engine.result(self._key, self.token, 0.0)
            assert answer is not None
        result: OutputT = self._gateway.serializer.decode(answer.content, self._output_type)
        return result

    async def cancel(self) -> None:
        """Ask the operation to end, as its caller does; `result` then tells what came of it."""
        await self._gateway.engine.cancel(self._key, self.token, {})

    async def signal(self, name: str, payload: Any = None, *, id: str | None = None) -> bool:
        """Tell the operation what `ctx.wait_for(name)` waits for, or will wait for.

        Args:
            name: The signal's name.
            payload: What it says: anything that JSON can hold.
            id: A second signal with the same name and id counts for nothing.

        Returns:
            Whether it is new.
        """
        return await self._gateway.signal(self.token, name, payload, id)

    # ------------------------------------------------------------ how far it goes

    async def until(self, *, step: str) -> Recorded:
        """Let the operation go on until an entry is in its journal, after as much time as it takes.

        Args:
            step: The entry's key, such as `charge#1`.

        Raises:
            NeverReached: The operation ended without it.
            Stuck: It cannot go on by itself.
        """
        return await self._gateway.until_recorded(self.token, step)

    async def until_waiting(self) -> None:
        """Let the operation go on until it waits: for time to pass, or for a signal.

        No time passes meanwhile, but the real time that its steps take.
        """
        await self._gateway.settle()

    # ------------------------------------------------------------ what there is to see

    @property
    def steps(self) -> list[Recorded]:
        """What is in the operation's journal, in the order in which it was recorded."""
        return [recorded_of(entry) for entry in self._gateway.recorded(self.token)]

    async def state(self) -> str:
        """Return the operation's state: ready, running, paused, succeeded, failed or canceled."""
        return (await self._gateway.stored(self.token)).state.value

    async def progress(self) -> tuple[float, str] | None:
        """Return the fraction and the text that the handler showed last."""
        shown = (await self._gateway.stored(self.token)).progress
        if shown is None:
            return None
        progress = json.loads(shown)
        return progress["fraction"], progress["message"]

    async def crash(self) -> None:
        """Lose the operation's process right now; another one takes it up."""
        await self._gateway.lose(self.token)


def recorded_of(entry: JournalEntry) -> Recorded:
    """Return a journal entry as a test sees it."""
    error = None
    if entry.error is not None:
        described = json.loads(entry.error)
        message = described.get("message")
        error = f"{described['type']}: {message}" if message else str(described["type"])
    return Recorded(
        key=entry.key,
        kind=str(entry.kind),
        attempts=entry.attempt,
        output=_plain(entry.output),
        error=error,
        at=datetime.fromtimestamp(entry.created_at / 1000, UTC),
    )


def _plain(output: bytes | None) -> Any:
    if output is None:
        return None
    try:
        return json.loads(output)
    except ValueError:
        return output
