"""Operations that another system runs and completes. Spec: SPEC.md#callback-urls."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType
from nexusrpc.handler import (
    CancelOperationContext,
    MiddlewareSafeOperationHandler,
    OperationContext,
    OperationHandler,
    OperationHandlerMiddleware,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
    operation_handler,
    service_handler,
)

from gateway import create_app
from gateway.runtime import Gateway
from tests.conformance.clause import Row, Table, failure, operation_error, row_id, scenario
from tests.conformance.services import make_services
from tests.conformance.world import JSON, World, get
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import served
from tests.support.raw_http import RawResponse, request

pytestmark = pytest.mark.anyio

PATH = "custom/elsewhere"
ENCODED_LINK = '<myscheme://shop/orders/7?a=1%2C2%3Bb=3>; type="com.example.Order"'

CLAUSES: Table = []


async def complete(world: World, token: str, outcome: Any) -> RawResponse:
    """Complete an operation over the operators' API."""
    target = f"/api/v1/operations/{token}/complete"
    return await world.exchange(request("POST", target, JSON, json.dumps(outcome).encode()))


@scenario(CLAUSES, "custom/start", "201 has a token of the gateway's, not the handler's")
async def start(world: World) -> None:
    token = await world.started(PATH, {"token": world.name})
    assert token != world.name
    info = await world.exchange(get(f"/services/{PATH}?token={token}"))
    assert info.json() == {"token": token, "state": "running"}


@scenario(CLAUSES, "custom/inline", "such a handler may answer with its result after all")
async def inline(world: World) -> None:
    answer = await world.start(PATH, "at once")
    assert (answer.status, answer.json()) == (200, "at once")
    assert answer.get("nexus-operation-state") == "succeeded"


@scenario(CLAUSES, "custom/refused", "an error of its start is the answer, and nothing is kept")
async def refused(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    for _ in range(2):
        answer = await world.start(PATH, {"error": "RESOURCE_EXHAUSTED"}, id)
        assert answer.status == 429
        failure("RESOURCE_EXHAUSTED", "not today")(answer.body)
    assert (await world.start(PATH, {"token": world.name}, id)).status == 201


@scenario(CLAUSES, "custom/unexpected", "an unexpected exception is 500, its text stays inside")
async def unexpected(world: World) -> None:
    answer = await world.start(PATH, {"error": "unexpected"})
    assert answer.status == 500
    failure("INTERNAL", hidden=["swordfish"])(answer.body)


@scenario(CLAUSES, "custom/failed", "an OperationError is 424, and remembered")
async def failed(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    for _ in range(2):
        answer = await world.start(PATH, {"error": "failed"}, id)
        assert answer.status == 424
        operation_error("failed", "out of stock", "shelf empty")(answer.body)


@scenario(CLAUSES, "custom/complete", "completed by API: result and completion, with all headers")
async def completed(world: World) -> None:
    headers = {"Nexus-Callback-Token": "t0k", "Nexus-Link": "<caller://mine>; type=T"}
    token = await world.started(PATH, {"token": world.name}, headers, callback=True)
    done = await complete(world, token, {"result": {"ok": True}})
    assert (done.status, done.body) == (204, b"")
    arrived = await world.completion()
    assert arrived.json() == {"ok": True}
    assert arrived.get("nexus-operation-token") == token
    assert arrived.get("nexus-operation-state") == "succeeded"
    assert arrived.get("nexus-operation-start-time")
    assert arrived.get("nexus-operation-close-time")
    assert arrived.get("token") == "t0k"
    assert arrived.get_all("nexus-link") == [ENCODED_LINK]
    assert (await world.result(PATH, token)).json() == {"ok": True}


@scenario(CLAUSES, "custom/complete-by-handler-token", "the handler's own token serves as well")
async def completed_by_handler_token(world: World) -> None:
    token = await world.started(PATH, {"token": world.name}, callback=True)
    assert (await complete(world, world.name, {"result": None})).status == 204
    arrived = await world.completion()
    assert (arrived.body, arrived.get("content-type")) == (b"", None)
    assert (await world.result(PATH, token)).status == 200


@scenario(CLAUSES, "custom/complete-failed", "failed and canceled are told likewise")
async def completed_as_failed(world: World) -> None:
    for state in ("failed", "canceled"):
        token = await world.started(PATH, {"token": f"{world.name}-{state}"})
        assert (await complete(world, token, {"state": state, "message": "no"})).status == 204
        ended = await world.result(PATH, token)
        assert ended.status == 424
        operation_error(state, "no")(ended.body)


@scenario(CLAUSES, "custom/complete-twice", "an operation ends once: a second end is 409")
async def completed_twice(world: World) -> None:
    token = await world.started(PATH, {"token": world.name})
    assert (await complete(world, token, {"result": 1})).status == 204
    again = await complete(world, token, {"result": 2})
    assert again.status == 409
    failure("CONFLICT")(again.body)
    assert (await world.result(PATH, token)).json() == 1


@scenario(CLAUSES, "custom/complete-unknown", "an unknown token is 404, a bad body 400")
async def completed_unknown(world: World) -> None:
    assert (await complete(world, "no-such-token", {"result": 1})).status == 404
    token = await world.started(PATH, {"token": world.name})
    bad: list[Any] = [1, [], {}, {"result": 1, "state": "failed"}, {"state": "running"}, None]
    for outcome in bad:
        answer = await complete(world, token, outcome)
        assert answer.status == 400
        failure("BAD_REQUEST")(answer.body)


@scenario(CLAUSES, "custom/complete-durable", "a durable operation is ended by its handler only")
async def completed_durable(world: World) -> None:
    token = await world.started("durable/forever")
    answer = await complete(world, token, {"result": 1})
    assert answer.status == 409
    failure("CONFLICT")(answer.body)


@scenario(CLAUSES, "custom/cancel", "cancel asks the handler, by its own token, and once")
async def cancel(world: World) -> None:
    token = await world.started(PATH, {"token": world.name})
    for _ in range(2):
        assert (await world.cancel(PATH, token)).status == 202
    flag = await world.start("inline/flag", world.name)
    assert flag.json() == "asked to cancel custom/elsewhere"
    # It was asked, no more: it may end in any state.
    assert (await complete(world, token, {"result": "late"})).status == 204
    assert (await world.result(PATH, token)).json() == "late"
    assert (await world.cancel(PATH, token)).status == 202


@scenario(CLAUSES, "custom/cancel-def", "a plain def cancel runs on a thread")
async def cancel_on_thread(world: World) -> None:
    token = await world.started("custom/threaded", {"token": world.name})
    assert (await world.cancel("custom/threaded", token)).status == 202
    assert "nexus-handler" in (await world.start("inline/flag", world.name)).json()


@scenario(CLAUSES, "custom/cancel-501", "what cannot be canceled is 501")
async def cannot_cancel(world: World) -> None:
    token = await world.started(PATH, {"token": f"no-cancel-{world.name}"})
    answer = await world.cancel(PATH, token)
    assert answer.status == 501
    failure("NOT_IMPLEMENTED")(answer.body)


@scenario(CLAUSES, "custom/cancel-refused", "an error of the handler's cancel is the answer")
async def cancel_refused(world: World) -> None:
    token = await world.started(PATH, {"token": f"refuses-{world.name}"})
    answer = await world.cancel(PATH, token)
    assert answer.status == 409
    failure("CONFLICT", "too late")(answer.body)


@scenario(CLAUSES, "custom/operation-timeout", "past Operation-Timeout it is failed")
async def operation_timeout(world: World) -> None:
    headers = {"Operation-Timeout": "100ms"}
    token = await world.started(PATH, {"token": world.name}, headers, callback=True)
    operation_error("failed", "operation timed out")((await world.completion()).body)
    assert (await complete(world, token, {"result": 1})).status == 409


@scenario(CLAUSES, "custom/prefer-wait", "Prefer: wait waits for its end")
async def prefer_wait(world: World) -> None:
    waiting = asyncio.create_task(world.start(PATH, {"token": world.name}, {"Prefer": "wait=10"}))
    async with asyncio.timeout(10):
        while (await complete(world, world.name, {"result": 7})).status == 404:
            pass
    answer = await waiting
    assert (answer.status, answer.json()) == (200, 7)


@scenario(CLAUSES, "custom/prefer-wait-201", "and answers 201 otherwise")
async def prefer_wait_in_vain(world: World) -> None:
    headers = {"Prefer": "wait=5", "Request-Timeout": "550ms"}
    answer = await world.start(PATH, {"token": world.name}, headers)
    assert answer.status == 201
    assert answer.get_all("nexus-link") == [ENCODED_LINK]


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)


# ---------------------------------------------------------------- completed in process


class Early(OperationHandler[str, int]):
    """Another system that is done, or interrupted, before `start` has returned."""

    def __init__(self, service: "Tickets") -> None:
        self._service = service

    async def start(
        self, ctx: StartOperationContext, input: str
    ) -> StartOperationResultSync[int] | StartOperationResultAsync:
        gateway = self._service.gateway
        assert gateway is not None
        how, _, token = input.partition(":")
        match how:
            case "here":
                assert await gateway.complete(token, 1)
            case "task":
                self._service.task = asyncio.create_task(gateway.complete(token, 2))
                await asyncio.sleep(0)
            case "held":
                self._service.began.set()
                await self._service.may_return.wait()
        return StartOperationResultAsync(token)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        raise NotImplementedError


@service_handler(name="tickets")
class Tickets:
    def __init__(self) -> None:
        self.gateway: Gateway | None = None
        self.task: asyncio.Task[bool] | None = None
        self.began = asyncio.Event()
        self.may_return = asyncio.Event()

    @operation_handler
    def open(self) -> OperationHandler[str, int]:
        return Early(self)


class Noting(OperationHandlerMiddleware):
    """Notes every call that passes, and refuses one kind."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self._name = name
        self._seen = seen

    def intercept(
        self, ctx: OperationContext, next: MiddlewareSafeOperationHandler
    ) -> MiddlewareSafeOperationHandler:
        return _Noted(self._name, self._seen, next)


class _Noted(MiddlewareSafeOperationHandler):
    def __init__(self, name: str, seen: list[str], next: MiddlewareSafeOperationHandler) -> None:
        self._name = name
        self._seen = seen
        self._next = next

    async def start(
        self, ctx: StartOperationContext, input: Any
    ) -> StartOperationResultSync[Any] | StartOperationResultAsync:
        self._seen.append(f"{self._name} start {ctx.operation}")
        if ctx.headers.get("x-tenant") == "blocked":
            raise HandlerError("blocked tenant", type=HandlerErrorType.UNAUTHORIZED)
        return await self._next.start(ctx, input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        self._seen.append(f"{self._name} cancel {token}")
        await self._next.cancel(ctx, token)


@dataclass
class InProcess:
    world: World
    gateway: Gateway
    tickets: Tickets
    middleware: list[str]


@pytest.fixture
async def here(tmp_path: Path, receiver: CallbackReceiver) -> AsyncIterator[InProcess]:
    tickets = Tickets()
    seen: list[str] = []
    app = create_app(
        [tickets, *make_services()],
        database=f"sqlite:///{tmp_path}/nexus.db",
        allow_private_callbacks=True,
        middleware=[Noting("outer", seen), Noting("inner", seen)],
    )
    async with served(app) as gateway:
        tickets.gateway = gateway.gateway
        yield InProcess(World(gateway.base_url, receiver), gateway.gateway, tickets, seen)


async def test_completed_in_process_by_either_token(here: InProcess) -> None:
    for number in range(2):
        own = f"own-{number}"
        token = await here.world.started("tickets/open", f"later:{own}")
        assert await here.gateway.complete(own if number else token, 7)
        assert (await here.world.result("tickets/open", token)).json() == 7
        assert not await here.gateway.complete(token, 8)


async def test_failed_and_canceled_in_process(here: InProcess) -> None:
    failed = await here.world.started("tickets/open", "later:a")
    assert await here.gateway.fail("a", "printer on fire")
    ended = await here.world.result("tickets/open", failed)
    operation_error("failed", "printer on fire")(ended.body)
    canceled = await here.world.started("tickets/open", "later:b")
    assert await here.gateway.cancel("b")
    ended = await here.world.result("tickets/open", canceled)
    operation_error("canceled", "operation canceled")(ended.body)


async def test_completing_an_unknown_token_is_not_found(here: InProcess) -> None:
    with pytest.raises(HandlerError) as error:
        await here.gateway.complete("nobody", 1)
    assert error.value.type is HandlerErrorType.NOT_FOUND


@pytest.mark.parametrize(("how", "result"), [("here", 1), ("task", 2)])
async def test_completed_before_start_returned(here: InProcess, how: str, result: int) -> None:
    token = await here.world.started("tickets/open", f"{how}:early", callback=True)
    arrived = await here.world.completion()
    assert arrived.json() == result
    assert arrived.get("nexus-operation-token") == token
    assert (await here.world.result("tickets/open", token)).json() == result


async def test_completed_from_elsewhere_while_start_runs(here: InProcess) -> None:
    starting = asyncio.create_task(here.world.start("tickets/open", "held:mine"))
    await here.tickets.began.wait()
    completing = asyncio.create_task(here.gateway.complete("mine", 3))
    await asyncio.sleep(0)
    here.tickets.may_return.set()
    assert await completing
    token = (await starting).json()["token"]
    assert (await here.world.result("tickets/open", token)).json() == 3


async def test_a_start_past_request_timeout_is_408_and_may_be_repeated(here: InProcess) -> None:
    headers = {"Request-Timeout": "50ms", "Nexus-Request-Id": "again"}
    late = await here.world.start("tickets/open", "held:mine", headers)
    assert late.status == 408
    failure("REQUEST_TIMEOUT")(late.body)
    here.tickets.may_return.set()
    assert (await here.world.start("tickets/open", "held:mine", headers)).status == 201


async def test_a_handler_token_used_twice_no_longer_tells_which(here: InProcess) -> None:
    tokens = [await here.world.started("tickets/open", "later:same") for _ in range(2)]
    with pytest.raises(HandlerError) as error:
        await here.gateway.complete("same", 1)
    assert error.value.type is HandlerErrorType.CONFLICT
    for token in tokens:
        assert await here.gateway.complete(token, 1)
        assert (await here.world.result("tickets/open", token)).json() == 1


async def test_middleware_wraps_inline_handlers(here: InProcess) -> None:
    assert (await here.world.start("inline/echo", 1)).json() == 1
    assert (await here.world.start("inline/threaded", 1)).status == 200
    assert here.middleware == [
        "outer start echo",
        "inner start echo",
        "outer start threaded",
        "inner start threaded",
    ]


async def test_middleware_wraps_start_and_cancel_of_custom_operations(here: InProcess) -> None:
    token = await here.world.started(PATH, {"token": "own"})
    assert (await here.world.cancel(PATH, token)).status == 202
    assert here.middleware == [
        "outer start elsewhere",
        "inner start elsewhere",
        "outer cancel own",
        "inner cancel own",
    ]


async def test_middleware_may_refuse(here: InProcess) -> None:
    refused = await here.world.start("inline/echo", 1, {"X-Tenant": "blocked"})
    assert refused.status == 403
    failure("UNAUTHORIZED", "blocked tenant")(refused.body)
    assert here.middleware == ["outer start echo"]
