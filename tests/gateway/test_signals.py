"""Signals from outside: over HTTP, by the command and by a program."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nexusrpc
import pytest
from anyio import to_thread
from nexusrpc.handler import service_handler

from gateway import create_app
from handlers import DurableContext, durable_operation
from tests.gateway.commands import run_here
from tests.support.gateway_process import served

pytestmark = pytest.mark.anyio


@nexusrpc.service(name="desk")
class Desk:
    ask: nexusrpc.Operation[int, list[Any]]


@service_handler(service=Desk)
class DeskHandler:
    @durable_operation
    async def ask(self, ctx: DurableContext, times: int) -> list[Any]:
        return [await ctx.wait_for("the answer", Any) for _ in range(times)]


@pytest.fixture
def app(tmp_path: Path) -> Any:
    return create_app([DeskHandler()], database=f"sqlite:///{tmp_path}/nexus.db")


@asynccontextmanager
async def opened(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        yield http


async def started(http: httpx.AsyncClient, times: int) -> str:
    return str((await http.post("/services/desk/ask", json=times)).json()["token"])


async def result(http: httpx.AsyncClient, token: str) -> Any:
    answer = await http.get(
        "/services/desk/ask/result",
        params={"wait": "10s"},
        headers={"nexus-operation-token": token},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_signal_over_http(app: Any) -> None:
    async with opened(app) as http:
        token = await started(http, 3)
        path = f"/api/v1/operations/{token}/signals/the%20answer"
        key = {"idempotency-key": "click"}
        first = await http.post(path, json={"by": "mia"}, headers=key)
        again = await http.post(path, json={"by": "mia"}, headers=key)
        for answer in (first, again):
            assert answer.status_code == 202
        assert (first.json(), again.json()) == ({"duplicate": False}, {"duplicate": True})
        assert (await http.post(path)).json() == {"duplicate": False}
        assert (await http.post(path, json=3)).json() == {"duplicate": False}
        assert await result(http, token) == [{"by": "mia"}, None, 3]
        assert (await http.post(path, headers=key)).json() == {"duplicate": True}
        ended = await http.post(path)
        assert ended.status_code == 409
        assert "ended" in ended.json()["message"]


@pytest.mark.parametrize(
    ("name", "body", "headers", "says"),
    [
        ("nexus.call", b"1", {}, "reserved for the gateway"),
        ("a" * 201, b"1", {}, "1 to 200 characters"),
        ("a%00b", b"1", {}, "control characters"),
        ("a%23b", b"1", {}, "no '#'"),
        ("a", b"{", {}, "JSON"),
        ("a", b"1", {"idempotency-key": "a" * 201}, "a signal's id"),
    ],
)
async def test_a_signal_that_cannot_be_taken(
    app: Any, name: str, body: bytes, headers: dict[str, str], says: str
) -> None:
    async with opened(app) as http:
        token = await started(http, 1)
        path = f"/api/v1/operations/{token}/signals/{name}"
        answer = await http.post(path, content=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert says in answer.json()["message"]


async def test_a_signal_to_nobody(app: Any) -> None:
    async with opened(app) as http:
        answer = await http.post("/api/v1/operations/nosuch/signals/a", json=1)
        assert answer.status_code == 404


async def test_a_program_signals(app: Any) -> None:
    async with opened(app) as http:
        token = await started(http, 2)
        gateway = app.state.gateway
        assert await gateway.signal(token, "the answer", {"by": "mia"}, "click")
        assert not await gateway.signal(token, "the answer", {"by": "mia"}, "click")
        with pytest.raises(nexusrpc.HandlerError, match="JSON"):
            await gateway.signal(token, "the answer", b"\x00")
        assert await gateway.signal(token, "the answer")
        assert await result(http, token) == [{"by": "mia"}, None]
        with pytest.raises(nexusrpc.HandlerError, match="ended"):
            await gateway.signal(token, "the answer")


async def test_the_command_signals(
    app: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps([1]))

    async with served(app) as here, httpx.AsyncClient(base_url=here.base_url) as http:
        token = await started(http, 2)

        async def signal(*arguments: str) -> Any:
            return await to_thread.run_sync(
                lambda: run_here(
                    capfd, "operations", "signal", token, *arguments, "--url", here.base_url
                )
            )

        assert (await signal("the answer", "--input", '"yes"', "--id", "x")).out == "signaled\n"
        assert (await signal("the answer", "--input", '"yes"', "--id", "x")).out == (
            "was signaled before\n"
        )
        assert "not JSON" in (await signal("the answer", "--input", "{")).err
        assert (await signal("nexus.a")).one_error().endswith("reserved for the gateway (400)")
        assert (await signal("the answer", "--input-file", str(file))).code == 0
        assert await result(http, token) == ["yes", [1]]
