"""Sets up the OpenTelemetry SDK, the only place that does; nothing where nothing exports.

The standard variables decide: spans are exported when `OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector.
"""

import os
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context, use_span

from callbacks.attempts import AroundAttempt, Outcome, Post
from callbacks.outbox import Delivery
from clients.sender import SentResponse
from handlers.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

DISTRIBUTION = "nexus-rpc-gateway"
_LAST_EXPORT_SECONDS = 2.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Telemetry:
    """The tracing of one gateway.

    Args:
        exporter: Where spans go; by default the OTLP collector that the environment names.
    """

    def __init__(self, exporter: "SpanExporter | None" = None) -> None:
        exporter = exporter or _configured_exporter()
        self._exporter = exporter
        self._provider: TracerProvider | None = None
        if exporter is None:
            self.tracing = Tracing()
            return
        self._provider = _provider(exporter)
        self._tracer = self._provider.get_tracer(DISTRIBUTION, version(DISTRIBUTION))
        self.tracing = Tracing(self._tracer)

    @property
    def around_attempt(self) -> AroundAttempt | None:
        """What makes a span of each delivery attempt, or None where nothing exports."""
        return None if self._provider is None else self._attempt

    def close(self) -> None:
        """Export what waits, for as long as a collector that answers would take; blocks."""
        if self._provider is None or self._exporter is None:
            return
        # The SDK would try one that is away for its whole timeout; this ends its retries.
        give_up = threading.Timer(_LAST_EXPORT_SECONDS, self._exporter.shutdown)
        give_up.daemon = True
        give_up.start()
        self._provider.shutdown()
        give_up.cancel()

    async def _attempt(self, delivery: Delivery, post: Post) -> Outcome:
        carrier = {name.lower(): value for name, value in delivery.headers}
        span = self._tracer.start_span(
            "deliver completion",
            # Not on top of the current context: it may be that of another operation.
            context=extract(carrier, Context()),
            kind=SpanKind.CLIENT,
            attributes={
                "nexus.operation.token": delivery.token,
                "nexus.attempt": delivery.attempt,
                "server.address": delivery.destination,
            },
        )
        # Never detached: an attempt has a task of its own, and what that logs afterwards about
        # the outcome belongs to this trace too.
        attach(set_span_in_context(span))
        with use_span(span, end_on_exit=True):
            outcome = await post(delivery, _with_current_trace(delivery.headers))
            if isinstance(outcome, SentResponse):
                span.set_attribute("http.response.status_code", outcome.status)
            else:
                span.set_status(Status(StatusCode.ERROR, type(outcome).__name__))
            return outcome


def _with_current_trace(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    carrier: dict[str, str] = {}
    inject(carrier)
    kept = [(name, value) for name, value in headers if name.lower() not in carrier]
    return [*kept, *carrier.items()]


def _provider(exporter: "SpanExporter") -> "TracerProvider":
    # Imported only here: a gateway that exports nothing need not wait for it.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": DISTRIBUTION}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _configured_exporter() -> "SpanExporter | None":
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    # Imported only here: it costs a third of the start-up time.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
