"""What a caller's callback receives, at a real receiver. Spec: SPEC.md#callback-urls."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.conformance.clause import Row, Table, operation_error, row_id, scenario
from tests.conformance.world import World, get, post
from tests.support.callback_receiver import Answer

pytestmark = pytest.mark.anyio

HTTP_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]+ \d{4} \d\d:\d\d:\d\d GMT")
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
TEMPORAL_TOKEN = '{"v":1,"d":"CiQw==, \\"q\\"; \ttab NjMw"}'
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

CLAUSES: Table = []


@scenario(CLAUSES, "completion/request", "a POST to exactly the URL given")
async def request_line(world: World) -> None:
    path = "/cb/%2Fa%20b;c=1?x=%26&y=1+2&z"
    await world.exchange(post(f"/services/durable/echo?{world.callback(path)}", 1))
    (arrived,) = await world.receiver.received()
    assert (arrived.method, arrived.target) == ("POST", path)
    assert arrived.get_all("host") == [world.receiver.url("").removeprefix("http://")]
    assert arrived.get("content-length") == "1"
    assert arrived.get("transfer-encoding") is None


@scenario(CLAUSES, "completion/succeeded", "the state, the result and its content headers")
async def succeeded(world: World) -> None:
    await world.started("durable/echo", {"a": "é"}, callback=True)
    arrived = await world.completion()
    assert arrived.get_all("nexus-operation-state") == ["succeeded"]
    assert arrived.get_all("content-type") == ["application/json"]
    assert arrived.get("content-encoding") is None
    assert arrived.json() == {"a": "é"}


@scenario(CLAUSES, "completion/null", "a null result has no body and no type")
async def null(world: World) -> None:
    await world.started("durable/nothing", 1, callback=True)
    arrived = await world.completion()
    assert arrived.get("nexus-operation-state") == "succeeded"
    assert (arrived.body, arrived.get("content-type")) == (b"", None)
    assert arrived.get("content-length") == "0"


@scenario(CLAUSES, "completion/bytes", "bytes arrive as they are")
async def some_bytes(world: World) -> None:
    body = bytes(range(256)) * 300
    target = f"/services/durable/bytes?{world.callback()}"
    octets = {"Content-Type": "application/octet-stream"}
    await world.exchange(post(target, body=body, headers=octets))
    arrived = await world.completion()
    assert arrived.get("content-type") == "application/octet-stream"
    assert arrived.body == body[::-1]


@scenario(CLAUSES, "completion/token", "the operation's token, and no other")
async def token(world: World) -> None:
    token = await world.started("durable/echo", 1, callback=True)
    assert (await world.completion()).get_all("nexus-operation-token") == [token]


@scenario(CLAUSES, "completion/times", "start as an HTTP date in GMT, close in RFC 3339 with Z")
async def times(world: World) -> None:
    before = datetime.now(UTC)
    await world.started("durable/echo", 1, callback=True)
    arrived = await world.completion()
    after = datetime.now(UTC)
    (start,) = arrived.get_all("nexus-operation-start-time")
    (close,) = arrived.get_all("nexus-operation-close-time")
    assert HTTP_DATE.fullmatch(start)
    assert RFC_3339.fullmatch(close)
    second = timedelta(seconds=1)
    assert before - second <= parsedate_to_datetime(start) <= after
    closed_at = datetime.fromisoformat(close)
    assert before - second <= closed_at <= after + second
    assert parsedate_to_datetime(start) <= closed_at


@scenario(CLAUSES, "completion/callback-headers", "the callback's headers, prefix stripped")
async def callback_headers(world: World) -> None:
    headers = {
        "Nexus-Callback-Token": "t0k",
        "Nexus-Callback-X-Custom": 'a, b; c="d"',
        "Nexus-Callback-Authorization": "Bearer abc",
        "NEXUS-CALLBACK-Empty": "",
        "X-Mine": "not the callback's",
    }
    await world.started("durable/echo", 1, headers, callback=True)
    arrived = await world.completion()
    assert arrived.get_all("token") == ["t0k"]
    assert arrived.get_all("x-custom") == ['a, b; c="d"']
    assert arrived.get_all("authorization") == ["Bearer abc"]
    assert arrived.get_all("empty") == [""]
    assert arrived.get("x-mine") is None
    assert not [name for name, _ in arrived.headers if name.lower().startswith("nexus-callback-")]


@scenario(CLAUSES, "completion/temporal-token", "Temporal's token comes back byte for byte")
async def temporal_token(world: World) -> None:
    headers = {"Nexus-Callback-Temporal-Callback-Token": TEMPORAL_TOKEN}
    await world.started("durable/echo", 1, headers, callback=True)
    assert (await world.completion()).get_all("temporal-callback-token") == [TEMPORAL_TOKEN]


@scenario(CLAUSES, "completion/utf-8-header", "also where it is UTF-8 beyond ASCII")
async def utf_8_header(world: World) -> None:
    value = "grüße ✓".encode().decode("latin-1")
    await world.started("durable/echo", 1, {"Nexus-Callback-Token": value}, callback=True)
    assert (await world.completion()).get_all("token") == [value]


@scenario(CLAUSES, "completion/handlers-links", "the handler's links, never the caller's")
async def links(world: World) -> None:
    caller = {"Nexus-Link": '<caller://mine>; type="com.example.Caller"'}
    await world.started("durable/linked", None, caller, callback=True)
    arrived = await world.completion()
    assert arrived.json() == [["caller://mine", "com.example.Caller"]]
    assert arrived.get_all("nexus-link") == [
        '<myscheme://shop/orders/7?a=1%2C2%3Bb=3>; type="com.example.Order"'
    ]


@scenario(CLAUSES, "completion/no-links", "without links of the handler there are none")
async def no_links(world: World) -> None:
    caller = {"Nexus-Link": '<caller://mine>; type="T"'}
    await world.started("durable/echo", None, caller, callback=True)
    assert (await world.completion()).get_all("nexus-link") == []


@scenario(CLAUSES, "completion/traceparent", "the caller's trace goes on")
async def traceparent(world: World) -> None:
    await world.started("durable/echo", 1, {"Traceparent": TRACEPARENT}, callback=True)
    (value,) = (await world.completion()).get_all("traceparent")
    assert value.split("-")[1] == TRACEPARENT.split("-")[1]


@scenario(CLAUSES, "completion/no-traceparent", "where there was one")
async def no_traceparent(world: World) -> None:
    await world.started("durable/echo", 1, callback=True)
    assert (await world.completion()).get_all("traceparent") == []


@scenario(CLAUSES, "completion/failed", "a failure is typed JSON, with the state in a header too")
async def failed(world: World) -> None:
    await world.started("durable/error", "failed", callback=True)
    arrived = await world.completion()
    assert arrived.get_all("nexus-operation-state") == ["failed"]
    assert arrived.get_all("content-type") == ["application/json"]
    operation_error("failed", "out of stock", "shelf empty")(arrived.body)


@scenario(CLAUSES, "completion/canceled", "canceled by the handler itself as well")
async def canceled(world: World) -> None:
    await world.started("durable/error", "canceled", callback=True)
    arrived = await world.completion()
    assert arrived.get_all("nexus-operation-state") == ["canceled"]
    operation_error("canceled", "out of stock", "shelf empty")(arrived.body)


@scenario(CLAUSES, "completion/application-error", "an application error in its third form")
async def application_error(world: World) -> None:
    await world.started("durable/error", "application", callback=True)
    found = (await world.completion()).json()
    assert found["metadata"]["unwrap-error"] == "true"
    assert found["cause"]["details"]["applicationFailureInfo"]["type"] == "CardDeclined"


@scenario(CLAUSES, "completion/handler-error", "a HandlerError of a durable handler fails it")
async def handler_error(world: World) -> None:
    await world.started("durable/error", "BAD_REQUEST", callback=True)
    arrived = await world.completion()
    assert arrived.get("nexus-operation-state") == "failed"
    failure = arrived.json()
    assert failure["metadata"]["type"] == "nexus.OperationError"
    assert "not today" in json.dumps(failure)


@scenario(CLAUSES, "completion/operation-timeout", "past Operation-Timeout it is failed")
async def operation_timeout(world: World) -> None:
    headers = {"Operation-Timeout": "100ms"}
    await world.started("durable/forever", 1, headers, callback=True)
    arrived = await world.completion()
    assert arrived.get("nexus-operation-state") == "failed"
    operation_error("failed", "operation timed out")(arrived.body)


@scenario(CLAUSES, "completion/own-timeout", "and past the operation's own limit")
async def own_timeout(world: World) -> None:
    headers = {"Operation-Timeout": "1m"}
    await world.started("durable/brief", 1, headers, callback=True)
    operation_error("failed", "operation timed out")((await world.completion()).body)


@scenario(CLAUSES, "completion/no-timeout", "an Operation-Timeout of zero is none")
async def zero_timeout(world: World) -> None:
    headers = {"Operation-Timeout": "0s", "Prefer": "wait=10"}
    answer = await world.start("durable/context", 1, headers)
    assert answer.json()["has_deadline"] is False


@scenario(CLAUSES, "completion/inline", "an operation that answered inline has no completion")
async def inline(world: World) -> None:
    assert (await world.start("inline/echo", 1, callback=True)).status == 200
    await world.started("durable/echo", "the only one", callback=True)
    (arrived,) = await world.receiver.received()
    assert arrived.body == b'"the only one"'


@scenario(CLAUSES, "completion/2xx", "any 2xx is success: nothing is sent again")
async def any_2xx(world: World) -> None:
    world.receiver.will_answer(204, 202, 299)
    tokens = [await world.started("durable/echo", n, callback=True) for n in range(3)]
    await world.receiver.received(3)
    # A retry would come after a second: these are sent first, and the store shows no attempt due.
    bodies = sorted(arrived.body for arrived in world.receiver.requests)
    assert bodies == [b"0", b"1", b"2"]
    for token in tokens:
        delivery = await settled(world, token)
        assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)


@scenario(CLAUSES, "completion/retried", "what may be retried is, with the same headers and body")
async def retried(world: World) -> None:
    world.receiver.will_answer(503)
    headers = {"Nexus-Callback-Token": "t0k", "Traceparent": TRACEPARENT}
    await world.started("durable/echo", {"a": 1}, headers, callback=True)
    first, second = await world.receiver.received(2)
    assert second.body == first.body
    assert [n for n, _ in second.headers] == [n for n, _ in first.headers]
    differ = {
        name
        for (name, value), (_, other) in zip(first.headers, second.headers, strict=True)
        if value != other
    }  # each attempt is signed with its own time
    assert differ <= {"webhook-timestamp", "webhook-signature", "webhook-nexus-signature"}
    assert second.at - first.at >= 0.7


@scenario(CLAUSES, "completion/no-redirect", "a redirect is not followed")
async def redirect(world: World) -> None:
    elsewhere = {"Location": world.receiver.url("/elsewhere")}
    world.receiver.will_answer(Answer(307, elsewhere))
    await world.started("durable/echo", 1, callback=True)
    seen = await world.receiver.received(2)
    assert [request.path for request in seen] == ["/callback", "/callback"]


@scenario(CLAUSES, "completion/permanent", "a final refusal is not repeated, and shown")
async def permanent(world: World) -> None:
    world.receiver.will_answer(Answer(400, {}, b'{"message":"bad token"}'))
    token = await world.started("durable/echo", 1, callback=True)
    await world.receiver.received()
    delivery = await settled(world, token)
    assert delivery["attempts"] == 1
    assert delivery["attempt_log"][0]["status"] == 400
    assert len(world.receiver.requests) == 1


async def settled(world: World, token: str) -> dict[str, Any]:
    """Return the one delivery of an operation when it is decided."""
    async with asyncio.timeout(10):
        while True:
            answer = await world.exchange(get(f"/api/v1/operations/{token}"))
            delivery: dict[str, Any] = answer.json()["deliveries"][0]
            if delivery["closed_at"] is not None:
                return delivery


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
