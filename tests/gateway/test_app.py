import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import nexusrpc
import pytest
from nexusrpc import Content
from nexusrpc.handler import (
    CancelOperationContext,
    MiddlewareSafeOperationHandler,
    OperationContext,
    OperationHandlerMiddleware,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
)
from starlette.applications import Starlette
from starlette.routing import Mount

import gateway
from callbacks.database import DatabaseError, DatabaseInUse
from clients import NexusClient
from gateway import Gateway, create_app
from gateway.settings import InvalidSettings, Settings
from handlers.services import InvalidService
from nexus_spec import PayloadSerializer
from tests.gateway.services import LabHandler
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import served

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/nexus.db"


@asynccontextmanager
async def opened(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        yield http


def test_the_public_names() -> None:
    assert sorted(gateway.__all__) == ["Gateway", "create_app"]
    assert gateway.Gateway is Gateway
    with pytest.raises(AttributeError, match="nosuch"):
        gateway.nosuch  # noqa: B018


async def test_an_app_serves_over_an_asgi_transport(database: str) -> None:
    app = create_app([LabHandler()], database=database)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        NexusClient("http://127.0.0.1/services", transport=transport) as nexus,
    ):
        assert await nexus.execute(("lab", "echo"), {"a": [1]}) == {"a": [1]}
        assert await nexus.execute(("lab", "nap"), 0.01) == "rested"
        assert isinstance(app.state.gateway, Gateway)


async def test_an_app_serves_under_uvicorn(database: str) -> None:
    async with (
        served(create_app([LabHandler()], database=database)) as here,
        NexusClient(f"{here.base_url}/services") as nexus,
    ):
        assert await nexus.execute(("lab", "nap"), 0.01) == "rested"


async def test_an_app_may_be_opened_again(database: str) -> None:
    app = create_app([LabHandler()], database=database)
    for _ in range(2):
        async with opened(app) as http:
            assert (await http.get("/readyz")).text == "ready\n"
            app.state.gateway.release_waiters()
            assert (await http.get("/readyz")).status_code == 503
    with pytest.raises(RuntimeError, match="not open"):
        _ = app.state.gateway.parts


async def test_an_app_without_its_lifespan_is_not_ready(database: str) -> None:
    transport = httpx.ASGITransport(create_app([LabHandler()], database=database))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503


@pytest.mark.parametrize("endpoints", [None, {}, {"empty": []}])
async def test_an_app_may_serve_nothing(database: str, endpoints: dict[str, Any] | None) -> None:
    async with opened(create_app(database=database, endpoints=endpoints)) as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.get("/api/v1/services")).json() == {"operations": []}
        assert (await http.post("/services/lab/echo")).status_code == 404


async def test_endpoints_are_apart(database: str) -> None:
    app = create_app(
        [LabHandler()], database=database, endpoints={"a/b": [LabHandler()], "default": []}
    )
    async with opened(app) as http:
        for prefix in ("", "/nexus/endpoints/default", "/nexus/endpoints/a%2Fb"):
            answer = await http.post(f"{prefix}/services/lab/echo", json=1)
            assert answer.status_code == 200
        answer = await http.post("/nexus/endpoints/nosuch/services/lab/echo", json=1)
        assert answer.status_code == 404


async def test_an_app_may_be_mounted_in_another(database: str) -> None:
    inner = create_app([LabHandler()], database=database)
    outer = Starlette(routes=[Mount("/nexus-here", app=inner)])
    transport = httpx.ASGITransport(outer)
    async with (
        inner.router.lifespan_context(inner),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        answer = await http.post("/nexus-here/services/lab/echo", json=1)
        assert (answer.status_code, answer.json()) == (200, 1)
        assert (await http.get("/nexus-here/healthz")).text == "ok\n"


class Noted(OperationHandlerMiddleware):
    """Notes which operations are started."""

    def __init__(self) -> None:
        self.starts: list[str] = []

    def intercept(
        self, ctx: OperationContext, next: MiddlewareSafeOperationHandler
    ) -> MiddlewareSafeOperationHandler:
        return _NotedHandler(self.starts, next)


class _NotedHandler(MiddlewareSafeOperationHandler):
    def __init__(self, starts: list[str], next: MiddlewareSafeOperationHandler) -> None:
        self._starts = starts
        self._next = next

    async def start(
        self, ctx: StartOperationContext, input: Any
    ) -> StartOperationResultSync[Any] | StartOperationResultAsync:
        self._starts.append(ctx.operation)
        return await self._next.start(ctx, input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        await self._next.cancel(ctx, token)


async def test_middleware_is_around_inline_and_custom_operations(database: str) -> None:
    noted = Noted()
    app = create_app([LabHandler()], database=database, middleware=[noted])
    async with opened(app) as http:
        assert (await http.post("/services/lab/echo", json=1)).json() == 1
        assert (await http.post("/services/lab/elsewhere", json="t")).status_code == 201
    assert noted.starts == ["echo", "elsewhere"]


class Shouting(PayloadSerializer):
    """Writes text in capitals."""

    def serialize(self, value: Any) -> Content:
        return super().serialize(value.upper() if isinstance(value, str) else value)


async def test_a_serializer_of_ones_own_reads_and_writes(database: str) -> None:
    app = create_app([LabHandler()], database=database, serializer=Shouting())
    async with opened(app) as http:
        assert (await http.post("/services/lab/echo", json="quiet")).json() == "QUIET"
        answer = await http.post("/services/lab/nap", json=0, headers={"prefer": "wait=10"})
        assert answer.json() == "RESTED"


async def test_a_program_completes_what_runs_elsewhere(
    database: str, receiver: CallbackReceiver
) -> None:
    app = create_app([LabHandler()], database=database, allow_private_callbacks=True)
    async with opened(app) as http:
        here: Gateway = app.state.gateway
        for own_token in ("a", "b", "c"):
            started = await http.post(
                "/services/lab/elsewhere",
                json=own_token,
                params={"callback": receiver.url(f"/{own_token}")},
            )
            assert started.status_code == 201, started.text
        assert await here.complete("a", {"it": "is"})
        assert await here.fail("b", "it broke")
        assert await here.cancel("c")
        assert not await here.complete("a", "again")
        with pytest.raises(nexusrpc.HandlerError, match="no"):
            await here.complete("nosuch", None)
        completed = await receiver.one("/a")
        assert completed.get("nexus-operation-state") == "succeeded"
        assert completed.json() == {"it": "is"}
        failed = await receiver.one("/b")
        assert failed.get("nexus-operation-state") == "failed"
        assert failed.json()["message"] == "it broke"
        assert (await receiver.one("/c")).get("nexus-operation-state") == "canceled"


async def test_two_apps_on_one_file_are_refused(database: str) -> None:
    app = create_app([LabHandler()], database=database)
    async with opened(app):
        with pytest.raises(DatabaseInUse):
            async with opened(create_app(database=database)):
                pass
    async with opened(create_app(database=database)) as http:
        assert (await http.get("/readyz")).status_code == 200


async def test_a_database_that_cannot_be_opened_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "nexus.db"
    database = f"sqlite:///{path}"
    async with opened(create_app(database=database)):
        pass
    connection = sqlite3.connect(path)
    [(version,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    for changed in ("9999", version):
        connection.execute("UPDATE alembic_version SET version_num = ?", (changed,))
        connection.commit()
        app = create_app(database=database)
        if changed == version:
            async with opened(app) as http:
                assert (await http.get("/readyz")).status_code == 200
        else:
            with pytest.raises(DatabaseError, match="newer than this gateway"):
                async with opened(app):
                    pass
            assert not app.state.gateway.is_open
    connection.close()


def test_what_cannot_be_served_is_refused_at_once(database: str) -> None:
    with pytest.raises(InvalidService, match="is a class"):
        create_app([LabHandler], database=database)
    with pytest.raises(InvalidService, match="two services"):
        create_app([LabHandler()], database=database, endpoints={"default": [LabHandler()]})
    with pytest.raises(InvalidSettings, match="public_url: must start with"):
        create_app(public_url="example.com")


def test_an_app_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_ALLOW_UNAUTHENTICATED", "true")
    monkeypatch.setenv("NEXUS_GATEWAY_PORT", "no number")
    assert create_app().state.gateway.settings.allow_unauthenticated is False


def test_an_app_takes_all_settings_at_once() -> None:
    settings = Settings(handler_threads=3)
    assert create_app(settings=settings).state.gateway.settings is settings
