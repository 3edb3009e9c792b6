"""What a durable handler can meet.

```
NexusError
├─ StepError              a step failed for good; raised the same on the first run and on replay
│  └─ CallError           a call to another endpoint was refused for good
│     └─ CallTimedOut     it did not end in the time given (also a TimeoutError)
├─ InvalidSignal          what was sent to a waiting operation is not what it waits for
└─ StepArgumentsInvalid   what was given to a step cannot be recorded
BaseException
└─ LeftMemory             private: the operation continues elsewhere, or later
   └─ Diverged            private: the code no longer matches the journal; the operation pauses
```
"""

from nexus_spec import NexusError


class StepError(NexusError):
    """A step failed and will not be tried again.

    Attributes:
        type_name: The class name of the error that the step's function raised last.
        message: Its text.
        step: The step's key in the journal, such as `charge#1`.
        attempts: How often the function ran.
    """

    def __init__(self, type_name: str, message: str, *, step: str = "", attempts: int = 1) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.step = step
        self.attempts = attempts


class CallError(StepError):
    """The other side refused a call and would refuse it again.

    That its operation ended failed or canceled is a `nexusrpc.OperationError` instead.

    Attributes:
        type_name: The type of its answer, such as `NOT_FOUND`.
        step: The call's key in the journal, such as `book#1`.
    """


class CallTimedOut(CallError, TimeoutError):
    """A call did not end within the `timeout` that it was given; the other side was told so."""


class StepArgumentsInvalid(NexusError, TypeError):
    """The function or the arguments of a step cannot be recorded; the message says why."""


class InvalidSignal(NexusError, ValueError):
    """A signal's payload is not of the type that `ctx.wait_for` was given; wait again for another.

    Attributes:
        name: The signal's name.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"signal {name!r}: {message}")
        self.name = name


class LeftMemory(BaseException):
    """The operation left this process's memory; nothing that its handler does counts any more.

    Not an `Exception`, so that no `except Exception` in a handler takes it for a failure, and not
    a `CancelledError`, which would look like a caller's cancel and run compensations.
    """


class Diverged(LeftMemory):
    """The handler's code asks for something else than its journal recorded."""
