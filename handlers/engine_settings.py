"""The engine's bounds."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How much the engine may use at a time, and when it gives something up.

    Attributes:
        handler_threads: Threads for `def` handlers; a start that finds all busy is UNAVAILABLE.
        step_threads: Threads for steps that are plain functions; further ones wait.
        cleanup_seconds: How long a handler may clean up after a cancel or its deadline.
        suspend_after_seconds: What waits longer than this leaves memory.
        poison_after: An operation is paused when it loses its process so many times in a row
            without recording anything.
        probation_seconds: How long one that lost several processes runs before the next such.
        claim_batch: How many operations are taken up at a time.
        retention: How long an operation is kept after its end.
    """

    handler_threads: int = 32
    step_threads: int = 32
    cleanup_seconds: float = 60.0
    suspend_after_seconds: float = 5.0
    poison_after: int = 5
    probation_seconds: float = 10.0
    claim_batch: int = 100
    retention: timedelta = timedelta(days=7)
