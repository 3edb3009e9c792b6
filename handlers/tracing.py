"""Spans of the engine, through the OpenTelemetry API; free when no exporter is configured."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind, Tracer

_NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Makes the spans, or nothing at all without a tracer.

    A recorded span costs a tenth of a whole operation, and even the no-op tracer of the API costs
    a little at each call, so nothing is called unless something exports.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded."""
        return self._tracer is not None

    def start(
        self, service: str, operation: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[None]:
        """The span of a start request, child of the caller's `traceparent`."""
        if self._tracer is None:
            return _NOTHING
        return self._span(
            f"start {service}/{operation}",
            SpanKind.SERVER,
            {"nexus.service": service, "nexus.operation": operation},
            extract(headers),
        )

    def run(
        self, service: str, operation: str, token: str, trace_context: str | None
    ) -> AbstractContextManager[None]:
        """The span of one run of a durable handler, in the trace of its start."""
        if self._tracer is None:
            return _NOTHING
        return self._span(
            f"run {service}/{operation}",
            SpanKind.INTERNAL,
            {
                "nexus.service": service,
                "nexus.operation": operation,
                "nexus.operation.token": token,
            },
            extract({"traceparent": trace_context}) if trace_context else Context(),
        )

    def step(self, key: str, attempt: int) -> AbstractContextManager[None]:
        """The span of one attempt of a step."""
        if self._tracer is None:
            return _NOTHING
        return self._span(
            f"step {key}", SpanKind.INTERNAL, {"nexus.step": key, "nexus.attempt": attempt}, None
        )

    def traceparent(self, headers: Mapping[str, str]) -> str | None:
        """Return what continues the trace: the current span, or what the caller sent."""
        if self._tracer is None:
            return headers.get("traceparent")
        carrier: dict[str, str] = {}
        inject(carrier)
        return carrier.get("traceparent") or headers.get("traceparent")

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, str | int],
        context: Context | None,
    ) -> Iterator[None]:
        assert self._tracer is not None
        with self._tracer.start_as_current_span(
            name, context=context, kind=kind, attributes=dict(attributes)
        ):
            yield


def current_trace_id() -> str | None:
    """Return the trace id of the current span, for logs."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None
