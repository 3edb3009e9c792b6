"""Asking an operation to end. Spec: SPEC.md#cancel-operation."""

from urllib.parse import quote

import pytest

from tests.conformance.clause import Clause, Row, Table, failure, operation_error, row_id, scenario
from tests.conformance.world import World, post
from tests.support.raw_http import chunked, request

pytestmark = pytest.mark.anyio

FOREVER = "/services/durable/forever"
UNKNOWN = {"Nexus-Operation-Token": "no-such-token"}

CLAUSES: Table = [
    Clause(
        id="cancel/no-token",
        says="no token is 400, and says where it goes",
        request=request("POST", f"{FOREVER}/cancel"),
        status=400,
        body=failure("BAD_REQUEST", "Nexus-Operation-Token", "token"),
    ),
    Clause(
        id="cancel/empty-token",
        says="an empty one too",
        request=request("POST", f"{FOREVER}/cancel?token=", {"Nexus-Operation-Token": ""}),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/no-token-inline",
        says="that is checked first",
        request=request("POST", "/services/inline/echo/cancel"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/inline",
        says="an inline operation cannot be canceled: 501, whatever the token",
        request=request("POST", "/services/inline/echo/cancel", UNKNOWN),
        status=501,
        body=failure("NOT_IMPLEMENTED"),
    ),
    Clause(
        id="cancel/inline-threaded",
        says="nor one that runs on a thread",
        request=request("POST", "/services/inline/threaded/cancel", UNKNOWN),
        status=501,
        body=failure("NOT_IMPLEMENTED"),
    ),
    Clause(
        id="cancel/unknown-token",
        says="an unknown token is 404",
        request=request("POST", f"{FOREVER}/cancel", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="cancel/unknown-token-custom",
        says="of an operation that runs elsewhere as well",
        request=request("POST", "/services/custom/elsewhere/cancel", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="cancel/unknown-token-deprecated",
        says="in the deprecated form as well",
        request=request("POST", f"{FOREVER}/tok1/cancel"),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="cancel/unknown-operation",
        says="an unknown operation is 404",
        request=request("POST", "/services/durable/nowhere/cancel", UNKNOWN),
        status=404,
        body=failure("NOT_FOUND", "'nowhere'"),
    ),
    Clause(
        id="cancel/token-too-long",
        says="a token has at most 4096 bytes",
        request=request("POST", f"{FOREVER}/cancel", {"Nexus-Operation-Token": "t" * 4097}),
        status=400,
        body=failure("BAD_REQUEST", "4096"),
    ),
    Clause(
        id="cancel/longest-token",
        says="which are allowed",
        request=request("POST", f"{FOREVER}/cancel", {"Nexus-Operation-Token": "t" * 4096}),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="cancel/token-with-controls",
        says="a token holds only what a header may",
        request=request("POST", f"{FOREVER}/cancel?token=a%0d%0ab"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/token-nul",
        says="and no NUL",
        request=request("POST", f"{FOREVER}/cancel?token=a%00b"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/token-beyond-latin-1",
        says="nor what no header can hold",
        request=request("POST", f"{FOREVER}/cancel?token=%E2%82%AC"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/token-invalid-utf8",
        says="a query that is not UTF-8 is 400",
        request=request("POST", f"{FOREVER}/cancel?token=%ff"),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="cancel/deprecated-token-controls",
        says="the deprecated form is checked alike",
        request=request("POST", f"{FOREVER}/a%0ab/cancel"),
        status=400,
        body=failure("BAD_REQUEST", "token"),
    ),
    Clause(
        id="cancel/deprecated-inline",
        says="and answers alike",
        request=request("POST", "/services/inline/echo/tok1/cancel"),
        status=501,
        body=failure("NOT_IMPLEMENTED"),
    ),
    Clause(
        id="cancel/bad-request-timeout",
        says="Request-Timeout counts on every request",
        request=request("POST", f"{FOREVER}/cancel", {**UNKNOWN, "Request-Timeout": "soon"}),
        status=400,
        body=failure("BAD_REQUEST", "request-timeout"),
    ),
    Clause(
        id="cancel/get",
        says="cancel is a POST",
        request=request("GET", f"{FOREVER}/cancel", UNKNOWN),
        status=400,
        body=failure("BAD_REQUEST", "GET"),
    ),
]


async def canceled(world: World, path: str, token: str) -> None:
    ended = await world.result(path, token)
    assert ended.status == 424
    assert ended.get("nexus-operation-state") == "canceled"
    operation_error("canceled", "operation canceled")(ended.body)


@scenario(CLAUSES, "cancel/header", "the token in a header: 202 without a body")
async def by_header(world: World) -> None:
    token = await world.started("durable/forever")
    answer = await world.cancel("durable/forever", token)
    assert (answer.status, answer.body) == (202, b"")
    assert answer.get("content-type") is None
    await canceled(world, "durable/forever", token)


@scenario(CLAUSES, "cancel/query", "the token in the query")
async def by_query(world: World) -> None:
    token = await world.started("durable/forever")
    target = f"{FOREVER}/cancel?token={quote(token, safe='')}"
    assert (await world.exchange(request("POST", target))).status == 202
    await canceled(world, "durable/forever", token)


@scenario(CLAUSES, "cancel/deprecated", "the token in the path, as old callers send it")
async def by_path(world: World) -> None:
    token = await world.started("durable/forever")
    target = f"{FOREVER}/{quote(token, safe='')}/cancel"
    assert (await world.exchange(request("POST", target))).status == 202
    await canceled(world, "durable/forever", token)


@scenario(CLAUSES, "cancel/header-before-query", "the header comes before the query")
async def header_first(world: World) -> None:
    token = await world.started("durable/forever")
    raw = request("POST", f"{FOREVER}/cancel?token=other", {"Nexus-Operation-Token": token})
    assert (await world.exchange(raw)).status == 202


@scenario(CLAUSES, "cancel/body-ignored", "a body, however it comes, is of no account")
async def with_body(world: World) -> None:
    token = await world.started("durable/forever")
    headers = {"Nexus-Operation-Token": token, "Transfer-Encoding": "chunked"}
    raw = request("POST", f"{FOREVER}/cancel", headers, chunked(b"{"), content_length=False)
    assert (await world.exchange(raw)).status == 202
    big = request("POST", f"{FOREVER}/cancel", {"Nexus-Operation-Token": token}, b"x" * 4_000_000)
    assert (await world.exchange(big)).status == 202


@scenario(CLAUSES, "cancel/again", "canceling again succeeds, and so does canceling after the end")
async def again(world: World) -> None:
    token = await world.started("durable/forever")
    for _ in range(2):
        assert (await world.cancel("durable/forever", token)).status == 202
    await canceled(world, "durable/forever", token)
    assert (await world.cancel("durable/forever", token)).status == 202


@scenario(CLAUSES, "cancel/succeeded", "also where the operation succeeded long ago")
async def after_success(world: World) -> None:
    token = await world.started("durable/echo", 1)
    assert (await world.result("durable/echo", token)).status == 200
    assert (await world.cancel("durable/echo", token)).status == 202
    assert (await world.result("durable/echo", token)).status == 200


@scenario(CLAUSES, "cancel/asks", "cancel asks: the operation may end in any state")
async def stubborn(world: World) -> None:
    token = await world.started("durable/stubborn")
    assert (await world.cancel("durable/stubborn", token)).status == 202
    ended = await world.result("durable/stubborn", token)
    assert (ended.status, ended.json()) == (200, "done all the same")


@scenario(CLAUSES, "cancel/completion", "the completion of a canceled operation says so")
async def completion(world: World) -> None:
    token = await world.started("durable/forever", callback=True)
    await world.cancel("durable/forever", token)
    arrived = await world.completion()
    assert arrived.get("nexus-operation-state") == "canceled"
    operation_error("canceled", "operation canceled")(arrived.body)


@scenario(CLAUSES, "cancel/other-operation", "the token of another operation is unknown")
async def other_operation(world: World) -> None:
    token = await world.started("durable/forever")
    for path in ("durable/gated", "custom/elsewhere"):
        answer = await world.cancel(path, token)
        assert answer.status == 404
        failure("NOT_FOUND", hidden=[token])(answer.body)
    other = "/nexus/endpoints/team%2Feu%201/services/durable/forever/cancel"
    answer = await world.exchange(request("POST", other, {"Nexus-Operation-Token": token}))
    assert answer.status == 404
    assert (await world.cancel("durable/forever", token)).status == 202


@scenario(CLAUSES, "cancel/handler-token", "a handler's own token is not the operation's")
async def handler_token(world: World) -> None:
    await world.started("custom/elsewhere", {"token": world.name})
    assert (await world.cancel("custom/elsewhere", world.name)).status == 404


@scenario(CLAUSES, "cancel/start-and-cancel", "an operation can be canceled from its first moment")
async def at_once(world: World) -> None:
    for _ in range(5):
        answer = await world.exchange(post("/services/durable/forever", None))
        token = answer.json()["token"]
        assert (await world.cancel("durable/forever", token)).status == 202
        await canceled(world, "durable/forever", token)


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
