import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette

from gateway import create_app
from gateway.logs import JsonFormatter
from gateway.telemetry import Telemetry
from tests.gateway.services import LabHandler
from tests.support.callback_receiver import CallbackReceiver, Received
from tests.support.eventually import eventually
from tests.support.gateway_process import Served, served

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


class World:
    """Gateways on one file, each with an exporter of its own."""

    def __init__(self, path: Path, receiver: CallbackReceiver) -> None:
        self._path = path
        self.receiver = receiver
        self.exporter = InMemorySpanExporter()

    def app(self, *, traced: bool = True) -> Starlette:
        """Return a gateway whose spans go to `exporter`, a new one."""
        self.exporter = InMemorySpanExporter()
        return create_app(
            [LabHandler()],
            database=f"sqlite:///{self._path}",
            allow_private_callbacks=True,
            telemetry=Telemetry(self.exporter) if traced else None,
        )

    async def start(
        self, here: Served, operation: str, value: Any, *, traceparent: str | None = TRACEPARENT
    ) -> str:
        """Start an operation with a callback, and return its token."""
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"{here.base_url}/services/lab/{operation}",
                json=value,
                params={"callback": self.receiver.url()},
                headers={} if traceparent is None else {"traceparent": traceparent},
            )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def start_and_wait(self, here: Served, *, traceparent: str | None = TRACEPARENT) -> str:
        """Start an operation that waits for a word, and wait until it has taken its first step."""
        operation = "steps_around_a_word"
        token = await self.start(here, operation, None, traceparent=traceparent)

        async def has_taken_it() -> bool | None:
            async with httpx.AsyncClient() as http:
                answer = await http.get(f"{here.base_url}/api/v1/operations/{token}")
            return bool(answer.json()["steps"]) or None

        await eventually(has_taken_it)
        return token

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans of the last gateway, which is closed."""
        return self.exporter.get_finished_spans()

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        [span] = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def world(tmp_path: Path, receiver: CallbackReceiver) -> World:
    return World(tmp_path / "nexus.db", receiver)


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """Return the trace, the span and its parent, as a traceparent writes them."""
    assert span.context is not None
    parent = "" if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def traceparent(received: Received) -> tuple[str, str]:
    values = received.get_all("traceparent")
    assert len(values) == 1
    _, trace, span, _ = values[0].split("-")
    return trace, span


async def test_a_trace_goes_on_from_the_caller_to_the_callback(world: World) -> None:
    async with served(world.app()) as here:
        token = await world.start(here, "two_steps", 0)
        completion = (await world.receiver.received())[0]
    start = ids(world.one("start lab/two_steps"))
    run = ids(world.one("run lab/two_steps"))
    steps = [ids(world.one(f"step {key}")) for key in ("first#1", "second#1")]
    delivery = ids(world.one("deliver completion"))
    assert {trace for trace, _, _ in (start, run, *steps, delivery)} == {TRACE}
    assert start[2] == CALLER
    assert run[2] == start[1]
    assert [parent for _, _, parent in steps] == [run[1], run[1]]
    assert traceparent(completion) == (TRACE, delivery[1])
    attributes = world.one("deliver completion").attributes
    assert attributes is not None
    assert attributes["nexus.operation.token"] == token
    assert attributes["http.response.status_code"] == 200


async def test_a_trace_goes_on_after_a_restart(world: World) -> None:
    async with served(world.app()) as here:
        token = await world.start_and_wait(here)
    assert [span.name for span in world.spans if span.name.startswith("step")] == ["step first#1"]
    start = ids(world.one("start lab/steps_around_a_word"))
    async with served(world.app()) as here:
        await here.gateway.signal(token, "word")
        completion = (await world.receiver.received())[0]
    assert [span.name for span in world.spans if span.name.startswith("step")] == ["step second#1"]
    run = ids(world.one("run lab/steps_around_a_word"))
    step = ids(world.one("step second#1"))
    delivery = ids(world.one("deliver completion"))
    assert {trace for trace, _, _ in (run, step, delivery)} == {TRACE}
    assert run[2] == start[1]
    assert step[2] == run[1]
    assert traceparent(completion) == (TRACE, delivery[1])


class Lines(logging.Handler):
    """Keeps what is logged, as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def delivery_log() -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger("callbacks.attempts")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_each_attempt_has_a_span_and_its_logs_the_trace(
    world: World, delivery_log: Lines
) -> None:
    world.receiver.will_answer(503, 200)
    async with served(world.app()) as here:
        token = await world.start(here, "two_steps", 0)
        received = await world.receiver.received(2)
    attempts = [span for span in world.spans if span.name == "deliver completion"]
    assert [traceparent(r) for r in received] == [ids(a)[:2] for a in attempts]
    [line] = [line for line in delivery_log.lines if "will be retried" in line]
    assert f'"trace_id": "{TRACE}"' in line
    assert f'"token": "{token}"' in line


async def test_operations_do_not_end_up_in_each_others_traces(world: World) -> None:
    async with served(world.app()) as here:
        for number in range(1, 6):
            parent = f"00-{number:032x}-{number:016x}-01"
            await world.start(here, "two_steps", 0, traceparent=parent)
        await world.start(here, "two_steps", 0, traceparent=None)
        received = await world.receiver.received(6)
    deliveries = {ids(span)[:2] for span in world.spans if span.name == "deliver completion"}
    assert {traceparent(r) for r in received} == deliveries
    by_trace: dict[str, list[str]] = {}
    for span in world.spans:
        by_trace.setdefault(ids(span)[0], []).append(span.name)
    assert len(by_trace) == 6
    assert {tuple(sorted(names)) for names in by_trace.values()} == {
        (
            "deliver completion",
            "run lab/two_steps",
            "start lab/two_steps",
            "step first#1",
            "step second#1",
        )
    }


async def test_what_the_caller_does_not_sample_is_not_recorded(world: World) -> None:
    async with served(world.app()) as here:
        await world.start(here, "two_steps", 0, traceparent=TRACEPARENT[:-2] + "00")
        completion = (await world.receiver.received())[0]
    assert world.spans == ()
    assert traceparent(completion)[0] == TRACE
    assert (completion.get("traceparent") or "").endswith("-00")


async def test_a_malformed_traceparent_begins_a_new_trace(world: World) -> None:
    async with served(world.app()) as here:
        await world.start(here, "two_steps", 0, traceparent="00-nonsense")
        completion = (await world.receiver.received())[0]
    trace, _, parent = ids(world.one("start lab/two_steps"))
    assert parent == ""
    assert traceparent(completion)[0] == trace


async def test_without_an_exporter_the_callers_traceparent_is_passed_on(world: World) -> None:
    async with served(world.app(traced=False)) as here:
        await world.start(here, "two_steps", 0)
        await world.start(here, "end", "failed", traceparent=None)
        first, second = sorted(
            await world.receiver.received(2), key=lambda r: r.get("traceparent") or "", reverse=True
        )
    assert first.get_all("traceparent") == [TRACEPARENT]
    assert second.get_all("traceparent") == []


async def test_an_operation_from_before_the_exporter_gets_a_trace_of_its_own(world: World) -> None:
    async with served(world.app(traced=False)) as here:
        tokens = [
            await world.start_and_wait(here, traceparent=None),
            await world.start_and_wait(here),
        ]
    async with served(world.app()) as here:
        for token in tokens:
            await here.gateway.signal(token, "word")
        received = await world.receiver.received(2)
    deliveries = {ids(span)[:2] for span in world.spans if span.name == "deliver completion"}
    assert {traceparent(r) for r in received} == deliveries
    assert TRACE in {trace for trace, _ in deliveries}
    assert len({trace for trace, _ in deliveries}) == 2


async def test_spans_hold_no_secrets(world: World) -> None:
    async with served(world.app()) as here, httpx.AsyncClient() as http:
        await http.post(
            f"{here.base_url}/services/lab/end",
            json="failed",
            params={"callback": world.receiver.url("/?signature=secret")},
            headers={"nexus-callback-authorization": "secret", "x-own": "secret"},
        )
        await world.receiver.received()
    assert world.spans
    assert not any("secret" in span.to_json() for span in world.spans)


async def test_a_collector_that_is_away_does_not_hold_the_end_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    async with served(world.app(traced=False)) as here:
        assert here.gateway.parts.telemetry.tracing.enabled
        await world.start(here, "two_steps", 0)
        await world.receiver.received()
        began = time.monotonic()
    assert time.monotonic() - began < 5
