"""Asking for result and state: the extension for callers without a callback."""

import asyncio
import time

import pytest

from tests.conformance.clause import (
    Clause,
    Row,
    Table,
    failure,
    json_value,
    operation_error,
    row_id,
    scenario,
)
from tests.conformance.world import World, get
from tests.support.raw_http import connect, request

pytestmark = pytest.mark.anyio

ECHO = "/services/durable/echo"
UNKNOWN = {"Nexus-Operation-Token": "no-such-token"}

CLAUSES: Table = [
    Clause(
        id="result/no-token",
        says="no token is 400",
        request=get(f"{ECHO}/result"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="result/unknown-token",
        says="an unknown token is 404",
        request=get(f"{ECHO}/result", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="result/unknown-token-waiting",
        says="at once, however long the caller would wait",
        request=get(f"{ECHO}/result?wait=60s", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="result/inline",
        says="an inline operation has no token to ask with",
        request=get("/services/inline/echo/result", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="result/bad-wait",
        says="wait is a duration",
        request=get(f"{ECHO}/result?wait=10", UNKNOWN),
        status=400,
        body=failure("BAD_REQUEST", "wait"),
    ),
    Clause(
        id="result/post",
        says="a result is asked for with GET",
        request=request("POST", f"{ECHO}/result", UNKNOWN),
        status=400,
        body=failure("BAD_REQUEST", "POST"),
    ),
    Clause(
        id="info/no-token",
        says="no token is 400",
        request=get(ECHO),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="info/unknown-token",
        says="an unknown token is 404",
        request=get(f"{ECHO}?token=t"),
        status=404,
        body=failure("NOT_FOUND"),
    ),
]


@scenario(CLAUSES, "result/200", "200 with the state and the result")
async def succeeded(world: World) -> None:
    token = await world.started("durable/echo", {"a": 1})
    answer = await world.result("durable/echo", token)
    assert (answer.status, answer.json()) == (200, {"a": 1})
    assert answer.get("nexus-operation-state") == "succeeded"
    assert answer.get("content-type") == "application/json"


@scenario(CLAUSES, "result/without-wait", "the result of what has ended needs no wait")
async def without_wait(world: World) -> None:
    token = await world.started("durable/echo", "x")
    assert (await world.result("durable/echo", token)).status == 200
    answer = await world.result("durable/echo", token, None)
    assert (answer.status, answer.body) == (200, b'"x"')
    query = get(f"{ECHO}/result?token={token}")
    assert (await world.exchange(query)).body == b'"x"'


@scenario(CLAUSES, "result/null", "a null result has no body and no type")
async def null(world: World) -> None:
    token = await world.started("durable/nothing", 1)
    answer = await world.result("durable/nothing", token)
    assert (answer.status, answer.body, answer.get("content-type")) == (200, b"", None)


@scenario(CLAUSES, "result/412", "412 without a body while it runs")
async def still_running(world: World) -> None:
    token = await world.started("durable/forever")
    answer = await world.result("durable/forever", token, None)
    assert (answer.status, answer.body) == (412, b"")


@scenario(CLAUSES, "result/408", "408 without a body when the wait is over: ask again")
async def waited_in_vain(world: World) -> None:
    token = await world.started("durable/forever")
    answer = await world.result("durable/forever", token, "50ms")
    assert (answer.status, answer.body) == (408, b"")


@scenario(CLAUSES, "result/request-timeout", "the wait ends before Request-Timeout does")
async def request_timeout(world: World) -> None:
    token = await world.started("durable/forever")
    headers = {"Nexus-Operation-Token": token, "Request-Timeout": "700ms"}
    began = time.monotonic()
    answer = await world.exchange(get("/services/durable/forever/result?wait=1m", headers))
    assert answer.status == 408
    assert time.monotonic() - began < 10  # not a minute


@scenario(CLAUSES, "result/long-poll", "who waits is answered when the operation ends")
async def long_poll(world: World) -> None:
    token = await world.started("durable/gated", world.name)
    polls = [asyncio.create_task(world.result("durable/gated", token)) for _ in range(3)]
    await world.open_gate(world.name)
    for poll in polls:
        assert (await poll).json() == f"through {world.name}"


@scenario(CLAUSES, "result/hung-up", "a caller that hangs up while waiting harms nobody")
async def hung_up(world: World) -> None:
    token = await world.started("durable/gated", world.name)
    headers = {"Nexus-Operation-Token": token}
    async with connect(world.base_url) as connection:
        await connection.send(get("/services/durable/gated/result?wait=10s", headers))
        assert (await world.result("durable/gated", token, "10ms")).status == 408
    await world.open_gate(world.name)
    assert (await world.result("durable/gated", token)).status == 200


@scenario(CLAUSES, "result/424", "424 with the typed failure")
async def failed(world: World) -> None:
    token = await world.started("durable/error", "failed")
    answer = await world.result("durable/error", token)
    assert answer.status == 424
    assert answer.get("nexus-operation-state") == "failed"
    operation_error("failed", "out of stock", "shelf empty")(answer.body)


@scenario(CLAUSES, "result/application-error", "an application error keeps its form")
async def application_error(world: World) -> None:
    token = await world.started("durable/error", "application")
    answer = await world.result("durable/error", token)
    inline = await world.start("inline/error", "application")
    assert (answer.status, answer.json()) == (424, inline.json())


@scenario(CLAUSES, "result/other-operation", "the token of another operation is unknown")
async def other_operation(world: World) -> None:
    token = await world.started("durable/forever")
    assert (await world.result("durable/echo", token)).status == 404
    info = get(ECHO, {"Nexus-Operation-Token": token})
    assert (await world.exchange(info)).status == 404


@scenario(CLAUSES, "info/200", "200 with token and state")
async def info(world: World) -> None:
    states = {"durable/forever": "running", "durable/echo": "succeeded", "durable/error": "failed"}
    for path, state in states.items():
        token = await world.started(path, "failed")
        if state != "running":
            await world.result(path, token)
        answer = await world.exchange(get(f"/services/{path}?token={token}"))
        assert answer.status == 200
        assert answer.get("content-type") == "application/json"
        json_value({"token": token, "state": state})(answer.body)


@scenario(CLAUSES, "info/canceled", "the state of a canceled operation is canceled")
async def canceled_info(world: World) -> None:
    token = await world.started("durable/forever")
    await world.cancel("durable/forever", token)
    await world.result("durable/forever", token)
    answer = await world.exchange(get(f"/services/durable/forever?token={token}"))
    assert answer.json()["state"] == "canceled"


@scenario(CLAUSES, "info/head", "HEAD is GET without the body, its length included (RFC 9110)")
async def head(world: World) -> None:
    token = await world.started("durable/forever")
    target = f"/services/durable/forever?token={token}"
    found = await world.exchange(get(target))
    answer = await world.exchange(request("HEAD", target, content_length=False))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.get("content-length") == found.get("content-length")
    assert answer.get("content-type") == found.get("content-type")


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
