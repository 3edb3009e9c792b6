"""The circuit breaker of one destination, as a state machine: no clock, no I/O, no randomness.

```
closed ──5 failures in a row──> open ──60 s──> half open: one probe at a time
   ^                             ^                 │           │
   │                             └─ the probe failed, twice ───┘
   └────────────────────────────── it was answered ┘  as long
```
"""

from dataclasses import dataclass, replace
from datetime import timedelta

__all__ = ["Breaker", "BreakerPolicy", "Outcomes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    Args:
        failures: so many in a row open it.
        first: how long it is open the first time; twice as long each time that a probe fails.
        cap: the longest that it is open, before jitter.
        jitter: the share by which an opening is shortened or lengthened at random, 0 to 1.
    """

    failures: int = 5
    first: timedelta = timedelta(seconds=60)
    cap: timedelta = timedelta(minutes=15)
    jitter: float = 0.1

    def opening(self, openings: int, random: float) -> timedelta:
        """Return how long the breaker stays open.

        Args:
            openings: how often in a row it has opened before.
            random: a number from 0 to 1; 0.5 stands for no jitter.
        """
        # Bounded before the power is taken: 2**2000 seconds are no timedelta.
        doublings = min(openings, 64)
        seconds = min(self.first.total_seconds() * 2**doublings, self.cap.total_seconds())
        return timedelta(seconds=seconds * (1 + self.jitter * (2 * random - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What attempts to one destination came to, since they were last reported.

    Args:
        failed: how many failed in a row, at last: the network, a timeout or a 5xx.
        answered: one before these was answered with anything else.
        probe: the last of them was the probe of an open breaker.
    """

    failed: int = 0
    answered: bool = False
    probe: bool = False

    def and_failed(self, *, probe: bool) -> "Outcomes":
        """Return the same and one more failure."""
        return Outcomes(failed=self.failed + 1, answered=self.answered, probe=self.probe or probe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state of a breaker. Times are milliseconds since 1970.

    Attributes:
        failures: in a row, while it is closed.
        openings: how often it opened in a row, without an answer in between.
        open_until: nothing is sent before; from then on one probe at a time. None: closed.
        probe_until: how long the probe that is under way is waited for.
    """

    failures: int = 0
    openings: int = 0
    open_until: int | None = None
    probe_until: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether deliveries wait, but for a probe."""
        return self.open_until is not None

    def after(
        self, outcomes: Outcomes, *, now: int, policy: BreakerPolicy, random: float
    ) -> "Breaker":
        """Return the state that outcomes lead to.

        An answer closes an open breaker, whoever got it. A failure opens it again only if it is
        the probe's: the others were under way when it opened.

        Args:
            outcomes: since the last report.
            now: milliseconds since 1970.
            policy: when to open, and for how long.
            random: a number from 0 to 1, for jitter.
        """
        known = Breaker() if outcomes.answered else self
        if known.is_open and not outcomes.probe:
            return known
        failures = known.failures + outcomes.failed
        if not known.is_open and failures < policy.failures:
            return replace(known, failures=failures)
        wait = policy.opening(known.openings, random)
        return Breaker(
            failures=failures,
            openings=known.openings + 1,
            open_until=now + round(wait.total_seconds() * 1000),
        )
