"""The same request again, and waiting for the end. Spec: SPEC.md#start-operation, RFC 7240."""

import asyncio
import time

import pytest

from tests.conformance.clause import Row, Table, failure, operation_error, row_id, scenario
from tests.conformance.world import JSON, World, post

pytestmark = pytest.mark.anyio

CLAUSES: Table = []


@scenario(CLAUSES, "replay/201", "a known request id is answered with the first token")
async def replayed(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    first = await world.started("durable/gated", world.name, id)
    assert await world.started("durable/gated", world.name, id) == first
    await world.open_gate(world.name)


@scenario(CLAUSES, "replay/200", "and with the result once the operation has ended")
async def replayed_result(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    token = await world.started("durable/counted", world.name, id)
    ended = await world.result("durable/counted", token)
    again = await world.start("durable/counted", world.name, id)
    assert (again.status, again.body) == (200, b"1") == (ended.status, ended.body)
    assert again.get("nexus-operation-state") == "succeeded"
    assert again.get("content-type") == "application/json"


@scenario(CLAUSES, "replay/424", "or with its failure")
async def replayed_failure(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    token = await world.started("durable/error", "failed", id)
    assert (await world.result("durable/error", token)).status == 424
    again = await world.start("durable/error", "failed", id)
    assert again.status == 424
    assert again.get("nexus-operation-state") == "failed"
    operation_error("failed", "out of stock", "shelf empty")(again.body)


@scenario(CLAUSES, "replay/links", "an operation's links come with its replay too")
async def replayed_links(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    first = await world.start("custom/elsewhere", {"token": world.name}, id)
    again = await world.start("custom/elsewhere", {"token": world.name}, id)
    assert again.json() == first.json()
    assert again.get_all("nexus-link") == first.get_all("nexus-link") != []


@scenario(CLAUSES, "replay/concurrent", "of requests at the same time one starts the operation")
async def concurrent(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    starts = [world.start("durable/counted", world.name, id) for _ in range(20)]
    answers = await asyncio.gather(*starts)
    tokens = {answer.json()["token"] for answer in answers if answer.status == 201}
    assert len(tokens) == 1
    assert {answer.status for answer in answers} <= {200, 201}
    assert (await world.result("durable/counted", tokens.pop())).json() == 1


@scenario(CLAUSES, "replay/concurrent-custom", "also where another system runs it")
async def concurrent_custom(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    starts = [world.start("custom/elsewhere", {"token": world.name}, id) for _ in range(10)]
    answers = await asyncio.gather(*starts)
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json()["token"] for answer in answers}) == 1


@scenario(CLAUSES, "fingerprint/other-input", "another input under the same request id is 409")
async def conflict(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    await world.started("durable/gated", world.name, id)
    other = await world.start("durable/gated", "other", id)
    assert other.status == 409
    failure("CONFLICT", "Nexus-Request-Id")(other.body)
    await world.open_gate(world.name)


@scenario(CLAUSES, "fingerprint/content-headers", "what describes the body is part of the input")
async def other_content_type(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    await world.started("durable/echo", 1, id)
    typed = {"Content-Type": "application/json; charset=utf-8", **id}
    other = await world.exchange(post("/services/durable/echo", body=b"1", headers=typed))
    assert other.status == 409


@scenario(CLAUSES, "fingerprint/nothing-else", "timeouts, callback, links and headers are not")
async def same_input(world: World) -> None:
    id = ("Nexus-Request-Id", world.name)
    first = [id, ("Operation-Timeout", "29990ms"), ("Nexus-Callback-Token", "a"), ("X-Try", "1")]
    again = [id, ("Operation-Timeout", "19990ms"), ("Nexus-Callback-Token", "b"), ("X-Try", "2")]
    token = await world.started("durable/gated", world.name, first, callback=True)
    assert await world.started("durable/gated", world.name, again, callback=True) == token
    chunked = [id, *JSON.items(), ("Nexus-Link", "<a://b>; type=T"), ("Request-Timeout", "5s")]
    body = b'"%s"' % world.name.encode()
    answer = await world.exchange(post("/services/durable/gated", body=body, headers=chunked))
    assert answer.json()["token"] == token
    await world.open_gate(world.name)


@scenario(CLAUSES, "request-id/scope", "a request id counts for its operation only")
async def scope(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    tokens = {
        await world.started("durable/echo", 1, id),
        await world.started("durable/forever", 1, id),
        await world.started("custom/elsewhere", {"token": world.name}, id),
    }
    other = post("/nexus/endpoints/team%2Feu%201/services/durable/echo", 1, id)
    tokens.add((await world.exchange(other)).json()["token"])
    assert len(tokens) == 4


@scenario(CLAUSES, "request-id/inline", "inline operations are neither recorded nor deduplicated")
async def inline(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    counts = [(await world.start("inline/calls", world.name, id)).json() for _ in range(2)]
    assert counts == [1, 2]


@scenario(CLAUSES, "request-id/none", "without a request id every start is a new one")
async def without_id(world: World) -> None:
    tokens = {await world.started("durable/forever") for _ in range(2)}
    assert len(tokens) == 2


@scenario(CLAUSES, "callback/same", "a retry with the same callback adds nothing")
async def same_callback(world: World) -> None:
    headers = {"Nexus-Request-Id": world.name, "Nexus-Callback-Token": "t"}
    for _ in range(3):
        await world.started("durable/gated", world.name, headers, callback=True)
    last = {"Nexus-Request-Id": world.name, "Nexus-Callback-Token": "last"}
    await world.started("durable/gated", world.name, last, callback=True)
    await world.open_gate(world.name)
    seen = await world.receiver.received(2)
    assert sorted(str(request.get("token")) for request in seen) == ["last", "t"]


@scenario(CLAUSES, "callback/late", "one that comes after the end is delivered at once")
async def late_callback(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    token = await world.started("durable/echo", "done", id)
    await world.result("durable/echo", token)
    late = await world.start("durable/echo", "done", id, callback=True)
    assert late.status == 200
    arrived = await world.completion()
    assert arrived.get("nexus-operation-token") == token
    assert arrived.body == b'"done"'


@scenario(CLAUSES, "callback/eleventh", "an operation has at most ten callbacks")
async def too_many_callbacks(world: World) -> None:
    for number in range(10):
        headers = {"Nexus-Request-Id": world.name, "Nexus-Callback-Token": str(number)}
        await world.started("durable/gated", world.name, headers, callback=True)
    headers = {"Nexus-Request-Id": world.name, "Nexus-Callback-Token": "10"}
    answer = await world.start("durable/gated", world.name, headers, callback=True)
    assert answer.status == 400
    failure("BAD_REQUEST", "10")(answer.body)
    await world.open_gate(world.name)
    assert len(await world.receiver.received(10)) == 10


@scenario(CLAUSES, "prefer/200", "Prefer: wait=N is answered 200 when it ends within N seconds")
async def prefer_wait(world: World) -> None:
    answer = await world.start("durable/echo", "hi", {"Prefer": "wait=10"})
    assert (answer.status, answer.body) == (200, b'"hi"')
    assert answer.get("nexus-operation-state") == "succeeded"


@scenario(CLAUSES, "prefer/424", "or 424 when it fails")
async def prefer_wait_failure(world: World) -> None:
    answer = await world.start("durable/error", "canceled", {"Prefer": "wait=10"})
    assert answer.status == 424
    operation_error("canceled", "out of stock", "shelf empty")(answer.body)


@scenario(CLAUSES, "prefer/callback", "a callback is delivered even after an inline answer")
async def prefer_and_callback(world: World) -> None:
    answer = await world.start("durable/echo", "hi", {"Prefer": "wait=10"}, callback=True)
    assert answer.status == 200
    assert (await world.completion()).body == b'"hi"'


@scenario(CLAUSES, "prefer/201", "and 201 otherwise, never 408")
async def prefer_wait_in_vain(world: World) -> None:
    answer = await world.start("durable/forever", None, {"Prefer": "wait=0"})
    assert answer.status == 201


@scenario(CLAUSES, "prefer/request-timeout", "the wait ends half a second before Request-Timeout")
async def prefer_within_request_timeout(world: World) -> None:
    began = time.monotonic()
    headers = {"Prefer": "respond-async, wait=30", "Request-Timeout": "600ms"}
    answer = await world.start("durable/forever", None, headers)
    took = time.monotonic() - began
    assert answer.status == 201
    assert 0.1 <= took < 10  # not 30


@scenario(CLAUSES, "prefer/replay", "a retry may wait as well")
async def prefer_on_replay(world: World) -> None:
    id = {"Nexus-Request-Id": world.name}
    await world.started("durable/gated", world.name, id)
    again = asyncio.create_task(
        world.start("durable/gated", world.name, {**id, "Prefer": "wait=10"})
    )
    await world.open_gate(world.name)
    assert (await again).json() == f"through {world.name}"


@scenario(CLAUSES, "prefer/unreadable", "a preference that cannot be read is ignored")
async def unreadable_preference(world: World) -> None:
    for value in ("wait=soon", "wait", "wait=-1", "wait=1e9", "=;,", "wait=" + "9" * 50):
        answer = await world.start("durable/forever", None, {"Prefer": value})
        assert answer.status == 201


@scenario(CLAUSES, "prefer/inline", "an inline operation has nothing to wait for")
async def prefer_inline(world: World) -> None:
    assert (await world.start("inline/echo", 1, {"Prefer": "wait=5"})).status == 200


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
