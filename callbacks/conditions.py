"""How a destination is, in one word for operators."""

from enum import StrEnum

from callbacks.standings import Standing

__all__ = ["Condition", "condition_of"]


class Condition(StrEnum):
    """What matters most about a destination; the members are in the order of their trouble."""

    OPEN = "open"  # its breaker: nothing is sent
    HALF_OPEN = "half_open"  # its breaker: one probe at a time
    DISABLED = "disabled"  # an operator holds its deliveries back
    WAITING = "waiting"  # it asked for that, with `Retry-After`
    FAILING = "failing"  # the last attempts failed, not enough of them to open its breaker
    SOUND = "sound"


def condition_of(standing: Standing, now: int) -> Condition:
    """Return how a destination is.

    Args:
        standing: what is known of it.
        now: milliseconds since 1970.
    """
    if standing.disabled_at is not None:
        return Condition.DISABLED
    if standing.breaker.open_until is not None:
        return Condition.OPEN if standing.breaker.open_until > now else Condition.HALF_OPEN
    if (standing.not_before or 0) > now:
        return Condition.WAITING
    return Condition.FAILING if standing.breaker.failures else Condition.SOUND
