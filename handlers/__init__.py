"""Operations that survive: the decorator and context for users, and the engine that runs them."""

from handlers.called_operation import CalledOperation
from handlers.context import DurableContext
from handlers.durable import durable_operation
from handlers.errors import CallError, CallTimedOut, InvalidSignal, StepArgumentsInvalid, StepError
from handlers.retry_policy import RetryPolicy

__all__ = [
    "CallError",
    "CallTimedOut",
    "CalledOperation",
    "DurableContext",
    "InvalidSignal",
    "RetryPolicy",
    "StepArgumentsInvalid",
    "StepError",
    "durable_operation",
]
