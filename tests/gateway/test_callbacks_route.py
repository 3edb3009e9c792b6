"""`POST /nexus/callback`: who may say how a call ended, and two gateways that call one another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import nexusrpc
import pytest
from nexusrpc.handler import service_handler

from callbacks.signing_keys import CALLS, SigningKeys
from clients import NexusClient
from clients.callback_tokens import OutgoingCall, new_signing_key, sign_call
from gateway import create_app
from gateway.settings import read_settings
from handlers import DurableContext, durable_operation
from tests.support.callback_receiver import Answer, CallbackReceiver, Received
from tests.support.eventually import eventually
from tests.support.gateway_process import Served, free_port, served

pytestmark = pytest.mark.anyio

FAR = "http://127.0.0.1:9/services"


@nexusrpc.service(name="travel")
class Travel:
    plan: nexusrpc.Operation[str, str]


@nexusrpc.service(name="hotels")
class Hotels:
    book: nexusrpc.Operation[str, str]


@service_handler(service=Travel)
class TravelHandler:
    @durable_operation
    async def plan(self, ctx: DurableContext, where: str) -> str:
        return f"trip to {await ctx.call(Hotels.book, where, endpoint='hotels')}"


@service_handler(service=Hotels)
class HotelsHandler:
    @durable_operation
    async def book(self, ctx: DurableContext, where: str) -> str:
        await ctx.wait_for("confirmed")
        return f"{where} for {ctx.caller or 'anybody'}"


@asynccontextmanager
async def travel(folder: Path, hotels_url: str, **endpoint: Any) -> AsyncIterator[Served]:
    """A gateway whose operations call hotels elsewhere."""
    port = free_port()
    options = {
        "database": f"sqlite:///{folder}/travel.db",
        "allow_private_callbacks": True,
        "public_url": f"http://127.0.0.1:{port}",
        "endpoints": {"hotels": {"url": hotels_url, **endpoint}},
    }
    settings = read_settings(options, environment=False)
    app = create_app([TravelHandler()], settings=settings)
    async with served(app, port=port) as here:
        yield here


@asynccontextmanager
async def hotels(folder: Path, **options: Any) -> AsyncIterator[Served]:
    app = create_app(
        [HotelsHandler()],
        database=f"sqlite:///{folder}/hotels.db",
        allow_private_callbacks=True,
        **options,
    )
    async with served(app) as here:
        yield here


async def only_token(there: Served) -> str:
    """Wait until one operation runs, and return its token."""
    async with httpx.AsyncClient(base_url=there.base_url) as http:

        async def ask() -> str | None:
            [*found] = (await http.get("/api/v1/operations")).json()["operations"]
            return found[0]["token"] if found else None

        return await eventually(ask)


async def confirm(there: Served) -> None:
    await there.gateway.signal(await only_token(there), "confirmed")


async def test_a_call_of_another_gateway_comes_back(tmp_path: Path) -> None:
    async with (
        hotels(tmp_path) as there,
        travel(tmp_path, f"{there.base_url}/services") as here,
        NexusClient(f"{here.base_url}/services") as nexus,
    ):
        handle = await nexus.start(Travel.plan, "Bern")
        await confirm(there)
        assert await handle.result(10) == "trip to Bern for anybody"


async def test_a_gateway_that_cannot_be_called_back_asks(tmp_path: Path) -> None:
    async with (
        hotels(tmp_path) as there,
        travel(tmp_path, f"{there.base_url}/services", callbacks="never") as here,
        NexusClient(f"{here.base_url}/services") as nexus,
    ):
        handle = await nexus.start(Travel.plan, "Bern")
        await confirm(there)
        assert await handle.result(10) == "trip to Bern for anybody"


# ------------------------------------------------------------ who may say it


@asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[tuple[Served, httpx.AsyncClient, Received, str]]:
    """An operation that waits for a call: its gateway, a client, the start it sent, its token."""
    started = Answer(
        201, {"content-type": "application/json"}, b'{"token": "t-1", "state": "running"}'
    )
    async with (
        CallbackReceiver(lambda _: started) as there,
        travel(folder, there.url("")) as here,
        NexusClient(f"{here.base_url}/services") as nexus,
        httpx.AsyncClient(base_url=here.base_url) as http,
    ):
        handle = await nexus.start(Travel.plan, "Bern")
        [start] = await there.received()
        assert handle.token is not None
        yield here, http, start, handle.token


def completion(start: Received | None, **headers: str) -> dict[str, str]:
    token = None if start is None else start.get("nexus-callback-token")
    return {
        "nexus-operation-state": "succeeded",
        "nexus-operation-token": "t-1",
        "content-type": "application/json",
        **({} if token is None else {"token": token}),
        **headers,
    }


async def result(here: Served, token: str) -> Any:
    async with NexusClient(f"{here.base_url}/services") as nexus:
        return await nexus.handle("travel", Travel.plan, token).result(10)


async def test_the_first_completion_counts_and_further_ones_are_taken(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (here, http, start, token):
        for where in ("Bern", "Chur"):
            answer = await http.post("/nexus/callback", json=where, headers=completion(start))
            assert (answer.status_code, answer.content) == (200, b"")
        assert await result(here, token) == "trip to Bern"
        answer = await http.post("/nexus/callback", json="Davos", headers=completion(start))
        assert answer.status_code == 200
        assert await result(here, token) == "trip to Bern"


@pytest.mark.parametrize("forged", ["", "x", "v1.sk_1.e30.AAAA", "own key", "no header"])
async def test_a_forged_token_is_refused_and_nothing_told(forged: str, tmp_path: Path) -> None:
    async with waiting(tmp_path) as (here, http, start, token):
        headers = completion(start)
        if forged == "no header":
            del headers["token"]
        elif forged == "own key":
            headers["token"] = sign_call(OutgoingCall(token, "book#1", "hotels"), new_signing_key())
        else:
            headers["token"] = forged
        for body in (b'"Davos"', b"{"):
            answer = await http.post("/nexus/callback", content=body, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["details"] == {"type": "UNAUTHENTICATED"}
            assert answer.json()["message"] == "the callback's token is missing or not valid"
        await http.post("/nexus/callback", json="Bern", headers=completion(start))
        assert await result(here, token) == "trip to Bern"


MALFORMED = [
    ({"nexus-operation-state": "done"}, b"1"),
    ({"nexus-operation-state": "running"}, b"1"),
    ({"nexus-operation-state": "failed"}, b"no JSON"),
    ({"nexus-operation-state": "failed"}, b""),
    ({"nexus-operation-start-time": "yesterday"}, b"1"),
    ({"nexus-link": "<broken"}, b"1"),
    ({"content-encoding": "gzip"}, b"1"),
]


@pytest.mark.parametrize(("headers", "body"), MALFORMED)
async def test_what_is_no_completion_is_a_bad_request(
    headers: dict[str, str], body: bytes, tmp_path: Path
) -> None:
    async with waiting(tmp_path) as (here, http, start, token):
        answer = await http.post(
            "/nexus/callback", content=body, headers=completion(start, **headers)
        )
        assert (answer.status_code, answer.json()["details"]["type"]) == (400, "BAD_REQUEST")
        await http.post("/nexus/callback", json="Bern", headers=completion(start))
        assert await result(here, token) == "trip to Bern"


async def test_a_completion_of_an_operation_that_is_gone_is_not_found(tmp_path: Path) -> None:
    async with travel(tmp_path, FAR) as here, httpx.AsyncClient(base_url=here.base_url) as http:
        key = await SigningKeys(here.gateway.parts.database, CALLS).signing()
        token = sign_call(OutgoingCall("no-such-operation", "book#1", "hotels"), key)
        answer = await http.post(
            "/nexus/callback", json="Bern", headers={**completion(None), "token": token}
        )
        assert (answer.status_code, answer.json()["details"]["type"]) == (404, "NOT_FOUND")


async def test_a_token_is_good_for_its_own_call_alone(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (here, http, start, token):
        key = await SigningKeys(here.gateway.parts.database, CALLS).signing()
        call = OutgoingCall(token, "book#1", "hotels")
        assert start.get("nexus-callback-token") == sign_call(call, key)
        other = sign_call(replace(call, key="book#2"), key)
        answer = await http.post(
            "/nexus/callback", json="Davos", headers=completion(start, token=other)
        )
        assert answer.status_code == 200  # kept for a call that is not made yet
        await http.post("/nexus/callback", json="Bern", headers=completion(start))
        assert await result(here, token) == "trip to Bern"


async def test_it_needs_no_key_where_others_do(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (_, http, start, _):
        answer = await http.post(
            "/nexus/callback",
            json="Bern",
            headers=completion(start, authorization="Bearer nxk_wrong"),
        )
        assert answer.status_code == 200


async def test_a_completion_that_fails_ends_the_caller(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (here, http, start, token):
        headers = completion(start, **{"nexus-operation-state": "canceled"})
        body = {"message": "no room"}
        await http.post("/nexus/callback", json=body, headers=headers)
        with pytest.raises(nexusrpc.OperationError, match="no room") as ended:
            await result(here, token)
        assert ended.value.state is nexusrpc.OperationErrorState.CANCELED


async def test_a_cancel_reaches_the_other_gateway(tmp_path: Path) -> None:
    async with (
        hotels(tmp_path) as there,
        travel(tmp_path, f"{there.base_url}/services") as here,
        NexusClient(f"{here.base_url}/services") as nexus,
    ):
        handle = await nexus.start(Travel.plan, "Bern")
        token = await only_token(there)
        await handle.cancel()
        with pytest.raises(nexusrpc.OperationError):
            await handle.result(10)
        async with httpx.AsyncClient(base_url=there.base_url) as http:

            async def ended() -> bool | None:
                shown = (await http.get(f"/api/v1/operations/{token}")).json()
                return True if shown["state"] == "canceled" else None

            assert await asyncio.wait_for(eventually(ended), 10)
