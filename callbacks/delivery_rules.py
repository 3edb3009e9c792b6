"""How deliveries go about it, for all destinations and for some: no clock, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from callbacks.breaker import BreakerPolicy
from callbacks.egress import AllowRule, Destination
from callbacks.retry_schedule import PERMANENT_STATUSES, RetryPolicy

__all__ = ["DeliveryRule", "DeliveryRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRule:
    """How one destination is delivered to.

    Args:
        retry: when a failed attempt is repeated, and for how long.
        permanent_statuses: answers after which it is not, unless they say otherwise themselves.
        breaker: when a destination that fails is left alone, and for how long.
        attempt_timeout_seconds: the most that one attempt may take, answer included.
        concurrency: how many attempts this process has under way at a time.
        per_second: how many it begins in a second; None: as many as there are.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    permanent_statuses: frozenset[int] = PERMANENT_STATUSES
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    attempt_timeout_seconds: float = 10.0
    concurrency: int = 64
    per_second: float | None = None

    @property
    def max_age_ms(self) -> int:
        """For how long delivery is tried, in milliseconds."""
        return round(self.retry.max_age.total_seconds() * 1000)


class DeliveryRules:
    """The rule of every destination.

    Args:
        default: Of those that no pattern is about.
        rules: Host patterns, as `AllowRule` reads them, with their ports; the first that matches
            counts.
    """

    def __init__(
        self,
        default: DeliveryRule | None = None,
        rules: Sequence[tuple[str, int | None, DeliveryRule]] = (),
    ) -> None:
        self.default = default or DeliveryRule()
        self._rules = [(AllowRule(host, port, insecure=True), rule) for host, port, rule in rules]
        self.of = lru_cache(maxsize=4096)(self._find)

    @property
    def all(self) -> list[DeliveryRule]:
        """Every rule there is."""
        return [self.default, *(rule for _, rule in self._rules)]

    def _find(self, name: str) -> DeliveryRule:
        scheme, _, rest = name.partition("://")
        host, _, port = rest.rpartition(":")
        destination = Destination(scheme=scheme, host=host.strip("[]"), port=int(port))
        for pattern, rule in self._rules:
            if pattern.matches(destination):
                return rule
        return self.default
