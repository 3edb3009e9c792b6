"""HTTP itself: methods, framing, connections, and requests that are none."""

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
from tests.conformance.world import JSON, World, get, post
from tests.support.raw_http import NoAnswer, chunked, connect, request

pytestmark = pytest.mark.anyio

ECHO = "/services/inline/echo"
TOKEN = {"Nexus-Operation-Token": "t"}

CLAUSES: Table = [
    Clause(
        id=f"method/{method.lower()}/{name}",
        says="a method that a path is not used with is a typed 400, not 405",
        request=request(method, f"{ECHO}{path}", TOKEN),
        status=400,
        headers={"Allow": None, "Access-Control-Allow-Origin": None},
        body=failure("BAD_REQUEST", method),
    )
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
    for name, path in (("start", ""), ("cancel", "/cancel"), ("result", "/result"))
]
CLAUSES += [
    Clause(
        id="method/lower-case",
        says="methods are case-sensitive; an unknown one is no request at all",
        request=request("post", ECHO, JSON, b"1"),
        status=400,
    ),
    Clause(
        id="method/head-without-token",
        says="HEAD is answered like GET, without the body",
        request=request("HEAD", ECHO, content_length=False),
        status=400,
        headers={"Content-Type": "application/json"},
        body=b"",
    ),
    Clause(
        id="method/cors-preflight",
        says="a browser's preflight is not granted",
        request=request(
            "OPTIONS",
            ECHO,
            {"Origin": "http://127.0.0.1", "Access-Control-Request-Method": "POST"},
        ),
        status=400,
        headers={"Access-Control-Allow-Origin": None, "Access-Control-Allow-Methods": None},
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="method/override",
        says="no header changes the method",
        request=request("POST", ECHO, {**JSON, "X-HTTP-Method-Override": "DELETE"}, b"1"),
        status=200,
        body=json_value(1),
    ),
    Clause(
        id="http/1.0",
        says="HTTP/1.0 is understood, without Host",
        request=b"POST /services/inline/echo HTTP/1.0\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n12",
        status=200,
        body=json_value(12),
    ),
    Clause(
        id="http/upgrade",
        says="an offer to upgrade, as Java's client makes it, is declined by ignoring it",
        request=request(
            "POST",
            ECHO,
            {
                **JSON,
                "Connection": "Upgrade, HTTP2-Settings",
                "Upgrade": "h2c",
                "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
            },
            b"[1]",
        ),
        status=200,
        body=json_value([1]),
    ),
    Clause(
        id="http/upgrade-websocket",
        says="there is no WebSocket here",
        request=request(
            "GET",
            ECHO,
            {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                "Sec-WebSocket-Version": "13",
            },
            content_length=False,
        ),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="http/duplicate-length",
        says="a request of two lengths is refused",
        request=request("POST", ECHO, {**JSON, "content-length": "1"}, b"12"),
        status=400,
    ),
    Clause(
        id="http/bad-length",
        says="a length that is no number is refused",
        request=request("POST", ECHO, {**JSON, "Content-Length": "-1"}, content_length=False),
        status=400,
    ),
    Clause(
        id="http/nul-in-header",
        says="NUL in a header is refused",
        request=post(ECHO, 1, {"X-A": "a\0b"}),
        status=400,
    ),
    Clause(
        id="http/space-in-header-name",
        says="so is a header name that is none",
        request=post(ECHO, 1, {"X A": "b"}),
        status=400,
    ),
    Clause(
        id="http/bad-chunk",
        says="and a chunk without a size",
        request=request(
            "POST",
            ECHO,
            {**JSON, "Transfer-Encoding": "chunked"},
            b"zz\r\n1\r\n0\r\n\r\n",
            content_length=False,
        ),
        status=400,
    ),
    Clause(
        id="http/no-request",
        says="and what is no request",
        request=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        status=400,
    ),
    Clause(
        id="http/query-not-ascii",
        says="bytes beyond ASCII in a query are 400",
        request=post(b"/services/inline/echo?callback=\xff", 1),
        status=400,
    ),
    Clause(
        id="http/path-not-ascii",
        says="and in a path",
        request=post("/services/inline/gr\xfc\xdfe".encode("latin-1"), 1),
        status=400,
    ),
    Clause(
        id="http/many-query-parameters",
        says="a query of very many parameters is 400",
        request=post(f"{ECHO}?{'a=1&' * 5000}", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="callback/forged",
        says="a completion without a token that was made here is 401, typed",
        request=post("/nexus/callback", 1, {"Nexus-Operation-State": "succeeded", "Token": "x"}),
        status=401,
        body=failure("UNAUTHENTICATED"),
    ),
    Clause(
        id="callback/get",
        says="a completion is a POST",
        request=get("/nexus/callback"),
        status=400,
        body=failure("BAD_REQUEST", "POST"),
    ),
    Clause(
        id="api/unknown-token",
        says="the operators' API answers alike",
        request=get("/api/v1/operations/no%00such%ff"),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="api/bad-query",
        says="with the same typed errors",
        request=get("/api/v1/operations?limit=-1&state=%00"),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="api/method",
        says="for methods too",
        request=request("DELETE", "/api/v1/operations"),
        status=400,
        body=failure("BAD_REQUEST", "GET"),
    ),
    Clause(
        id="http/extension-parameters",
        says="unknown query parameters are ignored",
        request=post(f"{ECHO}?x=1&y&=z", 1),
        status=200,
    ),
]


@scenario(CLAUSES, "http/expect", "Expect: 100-continue is told to go on")
async def expect_continue(world: World) -> None:
    raw = post(ECHO, {"a": 1}, {"Expect": "100-continue"})
    head, body = raw.split(b"\r\n\r\n", 1)
    async with connect(world.base_url) as connection:
        await connection.send(head + b"\r\n\r\n")
        assert (await connection.read_response()).status == 100
        await connection.send(body)
        answer = await connection.read_response()
    assert (answer.status, answer.json()) == (200, {"a": 1})


@scenario(CLAUSES, "http/expect-refused", "or gets the final answer at once")
async def expect_refused(world: World) -> None:
    raw = request("POST", "/services/%zz/echo", {**JSON, "Expect": "100-continue"}, b"x" * 10)
    head, _ = raw.split(b"\r\n\r\n", 1)
    async with connect(world.base_url) as connection:
        await connection.send(head + b"\r\n\r\n")
        assert (await connection.read_response()).status == 400


@scenario(CLAUSES, "http/upgrade-keep-alive", "and the connection goes on in HTTP/1.1")
async def keep_alive_after_offer(world: World) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "UPGRADE": "h2c", "HTTP2-Settings": "AAEA"}
    text = "x\r\nUpgrade: in a body is no offer\r\n\r\n"
    async with connect(world.base_url) as connection:
        for number in range(3):
            await connection.send(post(ECHO, [number], offer))
            assert (await connection.read_response()).json() == [number]
            head, body = post(ECHO, text, offer).split(b"\r\n\r\n", 1)
            await connection.send(head + b"\r\n\r\n")
            await connection.send(body)
            assert (await connection.read_response()).json() == text


@scenario(CLAUSES, "http/keep-alive", "a connection serves one request after the other")
async def keep_alive(world: World) -> None:
    async with connect(world.base_url) as connection:
        for number in range(3):
            await connection.send(post(ECHO, number))
            assert (await connection.read_response()).json() == number


@scenario(CLAUSES, "http/keep-alive-after-errors", "errors leave the connection usable")
async def keep_alive_after_errors(world: World) -> None:
    async with connect(world.base_url) as connection:
        for raw, status in (
            (post("/services/nobody/echo", 1), 404),
            (post("/services/%zz/echo", "x" * 100_000), 400),
            (post(ECHO, "x" * 5_000_000), 400),
            (request("HEAD", ECHO, content_length=False), 400),
            (post("/services/inline/error", "failed"), 424),
            (request("POST", f"{ECHO}/cancel", TOKEN, b"unread" * 1000), 501),
            (post(ECHO, 1), 200),
        ):
            await connection.send(raw)
            method = raw.partition(b" ")[0].decode()
            assert (await connection.read_response(method=method)).status == status


@scenario(CLAUSES, "http/pipelining", "pipelined requests are answered in their order")
async def pipelining(world: World) -> None:
    async with connect(world.base_url) as connection:
        await connection.send(b"".join(post(ECHO, number) for number in range(5)))
        answers = [(await connection.read_response()).json() for _ in range(5)]
    assert answers == [0, 1, 2, 3, 4]


@scenario(CLAUSES, "http/byte-by-byte", "a request may arrive in any pieces")
async def byte_by_byte(world: World) -> None:
    async with connect(world.base_url) as connection:
        for byte in post(ECHO, {"a": "b"}):
            await connection.send(bytes([byte]))
        assert (await connection.read_response()).json() == {"a": "b"}


@scenario(CLAUSES, "http/cut-off", "a request that is cut off starts nothing and harms nobody")
async def cut_off(world: World) -> None:
    whole = post("/services/durable/counted", world.name, {"Nexus-Request-Id": world.name})
    for cut in (1, 30, len(whole) - 3):
        async with connect(world.base_url) as connection:
            await connection.send(whole[:cut])
    headers = {**JSON, "Transfer-Encoding": "chunked"}
    part = request("POST", ECHO, headers, chunked(b"12")[:-5], content_length=False)
    async with connect(world.base_url) as connection:
        await connection.send(part)
    token = (await world.exchange(whole)).json()["token"]
    assert (await world.result("durable/counted", token)).json() == 1


@scenario(CLAUSES, "http/answer-not-read", "a start counts although nobody reads its answer")
async def answer_not_read(world: World) -> None:
    raw = post(f"/services/durable/echo?{world.callback()}", "sent")
    async with connect(world.base_url) as connection:
        await connection.send(raw)
    assert (await world.completion()).body == b'"sent"'


@scenario(CLAUSES, "http/no-http", "what is no request gets the protocol's error")
async def no_http(world: World) -> None:
    for raw in (
        b"hello\r\n\r\n",
        request("POST", ECHO, {"X": "a\x00b"}),
        b"post / HTTP/1.1\r\n\r\n",
    ):
        async with connect(world.base_url) as connection:
            await connection.send(raw)
            answer = await connection.read_response()
            assert (answer.status, answer.json()["details"]["type"]) == (400, "BAD_REQUEST")
            assert await connection.at_end()


@scenario(CLAUSES, "http/endless-head", "a head that does not end is refused")
async def endless_head(world: World) -> None:
    async with connect(world.base_url) as connection:
        await connection.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 12_000)
        answer = await connection.read_response()
    assert answer.status == 400
    assert "head" in answer.json()["message"]


@scenario(CLAUSES, "http/close", "Connection: close is honoured")
async def close(world: World) -> None:
    async with connect(world.base_url) as connection:
        await connection.send(post(ECHO, 1, {"Connection": "close"}))
        assert (await connection.read_response()).status == 200
        assert await connection.at_end()


@scenario(CLAUSES, "http/smuggling", "length and chunks together are refused or read as chunks")
async def smuggling(world: World) -> None:
    headers = {**JSON, "Transfer-Encoding": "chunked"}
    raw = request("POST", ECHO, headers, chunked(b"1") + get("/healthz"))
    async with connect(world.base_url) as connection:
        await connection.send(raw)
        try:
            answer = await connection.read_response()
        except NoAnswer:
            return
        assert answer.status == 400 or answer.json() == 1


@scenario(CLAUSES, "http/no-redirect", "nothing is ever redirected")
async def no_redirect(world: World) -> None:
    for target in ("/services/inline/echo/", "/services//inline/echo", "/services", "//services"):
        answer = await world.exchange(post(target, 1))
        assert answer.status in (400, 404)
        assert answer.get("location") is None
        assert answer.json()["metadata"]["type"] == "nexus.HandlerError"


@scenario(CLAUSES, "http/operation-error-head", "HEAD of a failed result has its headers")
async def head_of_failure(world: World) -> None:
    token = await world.started("durable/error", "failed")
    found = await world.result("durable/error", token)
    operation_error("failed", "out of stock", "shelf empty")(found.body)
    target = f"/services/durable/error/result?token={token}"
    answer = await world.exchange(request("HEAD", target, content_length=False))
    assert (answer.status, answer.body) == (424, b"")
    assert answer.get("nexus-operation-state") == "failed"
    assert answer.get("content-length") == found.get("content-length")


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
