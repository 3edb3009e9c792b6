"""`/metrics`: the plain numbers of engine, delivery and database, as Prometheus text."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from callbacks.conditions import Condition, condition_of
from callbacks.delivery_queries import BACKLOG
from handlers.stats import Histogram
from handlers.store.operations import COUNT_OPEN

if TYPE_CHECKING:
    from gateway.runtime import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def render_metrics(gateway: "Gateway") -> bytes:
    """Return the metrics as Prometheus text."""
    database = gateway.parts.database
    registry = CollectorRegistry()
    registry.register(
        _Numbers(
            gateway,
            {str(state): int(n) for state, n in await database.fetch(COUNT_OPEN, {})},
            {
                str(state): (int(n), oldest)
                for state, n, oldest in await database.fetch(BACKLOG, {})
            },
        )
    )
    return generate_latest(registry)


class _Numbers:
    def __init__(
        self,
        gateway: "Gateway",
        open_operations: dict[str, int],
        backlog: dict[str, tuple[int, int | None]],
    ) -> None:
        self._gateway = gateway
        self._open = open_operations
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        parts = self._gateway.parts
        stats = parts.engine.stats
        starts = CounterMetricFamily(
            "nexus_operation_starts",
            "Start requests that were answered.",
            labels=["endpoint", "service", "operation"],
        )
        for labels, count in stats.starts.items():
            starts.add_metric(labels, count)
        yield starts
        ended = CounterMetricFamily(
            "nexus_operations_ended",
            "Recorded operations that ended.",
            labels=["endpoint", "service", "operation", "state"],
        )
        for ended_labels, count in stats.ended.items():
            ended.add_metric(ended_labels, count)
        yield ended
        yield _by_state("nexus_operations_open", "Operations that have not ended.", self._open)
        yield GaugeMetricFamily(
            "nexus_operations_in_memory", "Durable operations in memory.", parts.engine.live
        )
        yield _histogram(
            "nexus_operation_duration_seconds",
            "From the start to the end of recorded operations.",
            stats.duration,
        )
        claimed = CounterMetricFamily(
            "nexus_operations_claimed",
            "Operations taken up from the database: woken or handed back (due), their process "
            "gone (lapsed), or this process's own that it did not know of (own).",
            labels=["reason"],
        )
        for reason in ("due", "lapsed", "own"):
            claimed.add_metric([reason], stats.claimed[reason])
        yield claimed
        yield CounterMetricFamily(
            "nexus_operations_poisoned",
            "Operations paused because they lost their process again and again.",
            stats.poisoned,
        )
        yield CounterMetricFamily(
            "nexus_operations_expired",
            "Operations deleted at the end of their retention.",
            stats.expired,
        )
        yield _histogram("nexus_step_duration_seconds", "Steps, retries included.", stats.step)
        yield from self._delivery()
        yield CounterMetricFamily(
            "nexus_database_commits", "Transactions committed.", parts.database.batches
        )
        yield CounterMetricFamily(
            "nexus_database_writes", "Writes in those transactions.", parts.database.writes
        )

    def _delivery(self) -> Iterator[Metric]:
        parts = self._gateway.parts
        stats = parts.delivery.stats
        now = parts.lease.now_ms()  # the clock by which deliveries are due
        outcomes = CounterMetricFamily(
            "nexus_callback_outcomes", "Outcomes of delivery attempts.", labels=["outcome"]
        )
        outcomes.add_metric(["delivered"], stats.delivered)
        outcomes.add_metric(["retried"], stats.retried)
        outcomes.add_metric(["failed"], stats.failed)
        yield outcomes
        yield _histogram(
            "nexus_callback_attempt_seconds", "Delivery attempts.", parts.delivery_seconds
        )
        yield _by_state(
            "nexus_callbacks",
            "Completions that are due, in flight or given up.",
            {state: n for state, (n, _) in self._backlog.items()},
        )
        conditions = Counter(
            condition_of(standing, now) for standing in parts.delivery.holds.standings
        )
        yield _by_state(
            "nexus_callback_destinations",
            "Destinations that deliveries wait for: they fail (open), an operator disabled them, "
            "or they asked for it with Retry-After (waiting).",
            {
                "open": conditions[Condition.OPEN] + conditions[Condition.HALF_OPEN],
                "disabled": conditions[Condition.DISABLED],
                "waiting": conditions[Condition.WAITING],
            },
        )
        oldest = self._backlog.get("due", (0, None))[1]
        yield GaugeMetricFamily(
            "nexus_callback_oldest_due_seconds",
            "How long the oldest due completion has been waiting for its attempt.",
            0.0 if oldest is None else max(0.0, (now - oldest) / 1000),
        )


def _by_state(name: str, text: str, counts: dict[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["state"])
    for state, count in counts.items():
        gauge.add_metric([state], count)
    return gauge


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text)
    running = 0
    buckets: list[tuple[str, float]] = []
    bounds = [*map(str, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, histogram.counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric([], buckets, histogram.total)
    return family
