"""How long a request may take, and who hangs up. Spec: SPEC.md#request-timeout."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from gateway import create_app
from gateway.settings import read_settings
from tests.conformance.clause import Row, Table, failure, row_id, scenario
from tests.conformance.world import World, post
from tests.support.gateway_process import served
from tests.support.raw_http import connect

pytestmark = pytest.mark.anyio

CLAUSES: Table = []


@scenario(CLAUSES, "request-timeout/async", "past it an inline handler is cancelled: 408, typed")
async def asynchronous(world: World) -> None:
    answer = await world.start("inline/slow", world.name, {"Request-Timeout": "100ms"})
    assert answer.status == 408
    failure("REQUEST_TIMEOUT", "Request-Timeout")(answer.body)
    assert (await world.start("inline/flag", world.name)).json() == "request timeout"


@scenario(CLAUSES, "request-timeout/def", "a plain def handler's caller gets 408 as well")
async def threaded(world: World) -> None:
    answer = await world.start("inline/slow-thread", world.name, {"Request-Timeout": "100ms"})
    assert answer.status == 408
    failure("REQUEST_TIMEOUT")(answer.body)
    assert (await world.start("inline/flag", world.name)).json() == "request timeout"


@scenario(CLAUSES, "request-timeout/in-time", "a handler that is in time is not troubled")
async def in_time(world: World) -> None:
    slow = asyncio.create_task(world.start("inline/slow", world.name, {"Request-Timeout": "10s"}))
    assert (await world.start("inline/at-gate", f"{world.name} began")).status == 200
    await world.open_gate(world.name)
    answer = await slow
    assert (answer.status, answer.json()) == (200, "late")


@scenario(CLAUSES, "request-timeout/durable", "a durable operation outlives the request")
async def durable(world: World) -> None:
    token = await world.started("durable/gated", world.name, {"Request-Timeout": "1ms"})
    await world.open_gate(world.name)
    assert (await world.result("durable/gated", token)).status == 200


@scenario(CLAUSES, "disconnect/async", "a caller that hangs up cancels its inline handler")
async def hang_up(world: World) -> None:
    async with connect(world.base_url) as connection:
        await connection.send(post("/services/inline/slow", world.name))
        await world.start("inline/at-gate", f"{world.name} began")
    assert (await world.start("inline/flag", world.name)).json() == "the caller disconnected"


@scenario(CLAUSES, "disconnect/def", "a plain def handler is told")
async def hang_up_on_thread(world: World) -> None:
    async with connect(world.base_url) as connection:
        await connection.send(post("/services/inline/slow-thread", world.name))
        await world.start("inline/flag", f"{world.name} began")
    assert (await world.start("inline/flag", world.name)).json() == "the caller disconnected"


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)


@service_handler(name="threads")
class Threads:
    """A plain def handler that a test holds in its hands."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()

    @sync_operation
    def hold(self, ctx: StartOperationContext, value: Any) -> str:
        self.began.release()
        self.may_end.wait(10.0)
        return "held"

    @sync_operation
    async def loop(self, ctx: StartOperationContext, value: Any) -> str:
        return "free"


@asynccontextmanager
async def one_thread(handlers: Threads, folder: Path) -> AsyncIterator[str]:
    settings = read_settings(
        {"database": f"sqlite:///{folder}/nexus.db", "handler_threads": 1}, environment=False
    )
    async with served(create_app([handlers], settings=settings)) as here:
        try:
            yield here.base_url
        finally:
            handlers.may_end.set()


@pytest.fixture
def threads() -> Threads:
    return Threads()


async def test_threads_full_is_unavailable_at_once(
    world: World, threads: Threads, tmp_path: Path
) -> None:
    async with one_thread(threads, tmp_path) as base_url:
        world.base_url = base_url
        first = asyncio.create_task(world.start("threads/hold"))
        await asyncio.to_thread(threads.began.acquire)
        refused = await world.start("threads/hold")
        assert refused.status == 503
        assert refused.get("retry-after") == "1"
        failure("UNAVAILABLE", "threads")(refused.body)
        assert (await world.start("threads/loop")).json() == "free"
        threads.may_end.set()
        assert (await first).json() == "held"
        assert (await world.start("threads/hold")).json() == "held"


async def test_a_handler_that_overstays_its_request_keeps_its_thread(
    world: World, threads: Threads, tmp_path: Path
) -> None:
    async with one_thread(threads, tmp_path) as base_url:
        world.base_url = base_url
        late = await world.start("threads/hold", None, {"Request-Timeout": "50ms"})
        assert late.status == 408
        # Its thread still runs: another request would wait behind it for who knows how long.
        assert (await world.start("threads/hold")).status == 503
        threads.may_end.set()
        async with asyncio.timeout(10):
            while (await world.start("threads/hold")).status == 503:
                pass
