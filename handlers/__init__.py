"""Operations that survive: the decorator and context for users, and the engine that runs them."""

from handlers.context import DurableContext
from handlers.durable import durable_operation
from handlers.errors import StepArgumentsInvalid, StepError
from handlers.retry_policy import RetryPolicy

__all__ = [
    "DurableContext",
    "RetryPolicy",
    "StepArgumentsInvalid",
    "StepError",
    "durable_operation",
]
