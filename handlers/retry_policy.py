"""How often a step is tried."""

from dataclasses import dataclass
from datetime import timedelta

from nexusrpc import HandlerError, OperationError

from nexus_spec import is_retryable


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and how long apart, a failing step is tried.

    Attributes:
        max_attempts: The number of attempts in all, at least 1.
        initial_interval: The wait after the first failure.
        backoff: By how much each wait is longer than the one before.
        max_interval: The longest wait.
        non_retryable: Errors after which no further attempt makes sense.
    """

    max_attempts: int = 5
    initial_interval: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    max_interval: timedelta = timedelta(seconds=60)
    non_retryable: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if self.backoff < 1:
            raise ValueError("backoff must be at least 1")
        if self.initial_interval < timedelta(0) or self.max_interval < timedelta(0):
            raise ValueError("intervals must not be negative")

    def retries(self, error: Exception, attempt: int) -> bool:
        """Whether another attempt follows after attempt number `attempt` failed so."""
        if attempt >= self.max_attempts or isinstance(error, (OperationError, *self.non_retryable)):
            return False
        return is_retryable(error) if isinstance(error, HandlerError) else True

    def wait_seconds(self, attempt: int) -> float:
        """The wait after attempt number `attempt` failed."""
        # The exponent is bounded so that a policy with thousands of attempts cannot overflow.
        wait = self.initial_interval.total_seconds() * self.backoff ** min(attempt - 1, 64)
        return min(wait, self.max_interval.total_seconds())
