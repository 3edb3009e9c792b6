"""Spans, when something records them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from handlers import DurableContext
from handlers.engine import Engine
from handlers.requests import Started
from handlers.services import ServiceRegistry
from handlers.tracing import Tracing, current_trace_id
from tests.handlers.test_steps import work
from tests.handlers.world import World, callback, until

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


async def test_a_trace_goes_from_the_caller_to_the_completion(open_world: OpenWorld) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    seen: list[str | None] = []

    async def charge() -> None:
        seen.append(current_trace_id())

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge)

    world = await open_world()
    tracing = Tracing(provider.get_tracer("test"))
    assert tracing.enabled
    engine = Engine(
        ServiceRegistry({"default": [work(body)]}),
        world.database,
        world.delivery,
        lease=world.lease,
        tracing=tracing,
    )
    request = world.request("run", callback=callback(), headers={"traceparent": TRACEPARENT})
    answer = await engine.start(request)
    assert isinstance(answer, Started)
    await until(lambda: world.sender.posts)
    await asyncio.sleep(0)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"start Work/run", "run Work/run", "step charge#1"}
    contexts = [span.get_span_context() for span in spans.values()]
    assert {f"{c.trace_id:032x}" for c in contexts if c is not None} == {TRACE}
    assert seen == [TRACE]
    assert TRACE in world.sender.posts[0].get("traceparent")[0]
    await engine.close(0)


def test_without_a_tracer_nothing_is_recorded() -> None:
    tracing = Tracing()
    assert not tracing.enabled
    assert tracing.traceparent({"traceparent": TRACEPARENT}) == TRACEPARENT
    assert current_trace_id() is None
