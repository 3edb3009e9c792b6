"""The client and its receiver together, the receiver served by uvicorn on a real socket."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from nexusrpc import Content, OperationError
from starlette.applications import Starlette
from starlette.routing import Mount

from clients import (
    CompletionClient,
    CompletionReceiver,
    MalformedResponse,
    NexusClient,
    StillRunning,
    Unreachable,
)
from nexus_spec import Completion, OperationState, parse_failure
from tests.clients.fake_clock import FakeClock
from tests.clients.scripted_server import ScriptedServer, answer, started
from tests.clients.services import OrderIn, Orders, Receipt

pytestmark = pytest.mark.anyio


@dataclass
class Served:
    receiver: CompletionReceiver
    nexus: NexusClient
    server: ScriptedServer

    def callback_url(self) -> str:
        [url] = parse_qs(urlsplit(self.server.seen[0].target).query)["callback"]
        return url


@pytest.fixture
async def served(server: ScriptedServer, fake_clock: FakeClock) -> AsyncIterator[Served]:
    app = Starlette()
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
    http_server = uvicorn.Server(config)
    config.load()
    http_server.lifespan = config.lifespan_class(config)
    await http_server.startup()
    port = http_server.servers[0].sockets[0].getsockname()[1]
    receiver = CompletionReceiver(public_url=f"http://127.0.0.1:{port}/nexus/cb")
    app.router.routes.append(Mount("/nexus/cb", receiver))
    async with NexusClient(server.url, callback_receiver=receiver, clock=fake_clock.clock) as nexus:
        yield Served(receiver, nexus, server)
    await http_server.shutdown()


async def deliver(url: str, *, data: bytes = b'{"id":9}', failure: bytes | None = None) -> None:
    completion = Completion(
        state=OperationState.SUCCEEDED if failure is None else OperationState.FAILED,
        token="tok",
        start_time=None,
        close_time=None,
        content=None
        if failure is not None
        else Content(headers={"content-type": "application/json"}, data=data),
        failure=None if failure is None else parse_failure(failure),
    )
    async with CompletionClient() as client:
        await client.complete(url, completion)


async def test_a_result_comes_by_callback(served: Served) -> None:
    served.server.will_answer(started())
    handle = await served.nexus.start(Orders.place, OrderIn(sku="tea"))
    assert "prefer" not in served.server.seen[0].headers
    waiting = asyncio.ensure_future(handle.result(timeout=10))
    await deliver(served.callback_url())
    assert await waiting == Receipt(id=9)
    assert await handle.result() == Receipt(id=9)
    assert len(served.server.seen) == 1


async def test_a_completion_that_overtakes_the_201(served: Served) -> None:
    served.server.will_answer(answer(503), started())
    starting = asyncio.ensure_future(served.nexus.execute(Orders.place, OrderIn(sku="tea")))
    await served.server.first_request.wait()
    await deliver(served.callback_url())
    assert await starting == Receipt(id=9)


async def test_a_completion_makes_up_for_a_lost_201(server: ScriptedServer) -> None:
    receiver = CompletionReceiver(public_url="http://receiver/cb")
    clock = FakeClock()

    class LosesAnswers(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            url = request.url.params["callback"]
            async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver)) as http:
                await http.post(
                    url,
                    headers={
                        "nexus-operation-state": "failed",
                        "nexus-operation-token": "tok",
                    },
                    content=b'{"message":"too late"}',
                )
            raise httpx.ReadError("reset", request=request)

    async with NexusClient(
        "http://peer", callback_receiver=receiver, transport=LosesAnswers(), clock=clock.clock
    ) as nexus:
        handle = await nexus.start(Orders.place, OrderIn(sku="tea"))
        assert handle.token == "tok"
        with pytest.raises(OperationError, match="too late"):
            await handle.result()


async def test_a_completion_makes_up_for_a_refused_retry() -> None:
    receiver = CompletionReceiver(public_url="http://receiver/cb")

    class Refuses(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            url = request.url.params["callback"]
            async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver)) as http:
                await http.post(url, headers={"nexus-operation-state": "succeeded"})
            return httpx.Response(409)

    async with NexusClient("http://peer", callback_receiver=receiver, transport=Refuses()) as nexus:
        handle = await nexus.start(("a", "b"))
        assert await handle.result() is None
        assert handle.token is None
        assert (await handle.info()).state is OperationState.SUCCEEDED


async def test_a_lost_start_without_a_completion_is_told() -> None:
    receiver = CompletionReceiver(public_url="http://receiver/cb")

    class Down(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

    async with NexusClient(
        "http://peer", callback_receiver=receiver, transport=Down(), clock=FakeClock().clock
    ) as nexus:
        with pytest.raises(Unreachable):
            await nexus.start(("a", "b"))


async def test_the_operation_fails(served: Served) -> None:
    served.server.will_answer(started())
    handle = await served.nexus.start(Orders.place, OrderIn(sku="tea"))
    failure = {"message": "broke", "cause": {"message": "cup"}}
    await deliver(served.callback_url(), failure=json.dumps(failure).encode())
    with pytest.raises(OperationError, match="broke"):
        await handle.result()


async def test_a_result_of_another_type(served: Served) -> None:
    served.server.will_answer(started())
    handle = await served.nexus.start(Orders.place, OrderIn(sku="tea"))
    await deliver(served.callback_url(), data=b'"text"')
    with pytest.raises(MalformedResponse):
        await handle.result()


async def test_nothing_comes_in_time_and_then_it_does(served: Served) -> None:
    served.server.will_answer(started())
    handle = await served.nexus.start(Orders.place, OrderIn(sku="tea"))
    with pytest.raises(StillRunning, match="within") as caught:
        await handle.result(timeout=0.01)
    assert caught.value.token == "tok1"
    await deliver(served.callback_url())
    assert await handle.result() == Receipt(id=9)


async def test_a_start_answered_at_once_needs_no_completion(served: Served) -> None:
    served.server.will_answer(answer(200, {"id": 1}))
    assert await served.nexus.execute(Orders.place, OrderIn(sku="tea")) == Receipt(id=1)
    gc.collect()
    # The gateway delivers the callback that was asked for all the same, and must not be refused.
    await deliver(served.callback_url())


async def test_a_callback_of_the_caller_s_own_is_not_awaited_here(served: Served) -> None:
    served.server.will_answer(started(), answer(200, {"id": 2}))
    handle = await served.nexus.start(
        Orders.place, OrderIn(sku="tea"), callback="https://elsewhere.example/cb"
    )
    assert served.callback_url() == "https://elsewhere.example/cb"
    assert await handle.result() == Receipt(id=2)
    assert served.server.seen[1].method == "GET"
