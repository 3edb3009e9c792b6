"""What a durable handler can meet.

```
NexusError
├─ StepError              a step failed for good; raised the same on the first run and on replay
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


class StepArgumentsInvalid(NexusError, TypeError):
    """The function or the arguments of a step cannot be recorded; the message says why."""


class LeftMemory(BaseException):
    """The operation left this process's memory; nothing that its handler does counts any more.

    Not an `Exception`, so that no `except Exception` in a handler takes it for a failure, and not
    a `CancelledError`, which would look like a caller's cancel and run compensations.
    """


class Diverged(LeftMemory):
    """The handler's code asks for something else than its journal recorded."""
