import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import nexusrpc
import pytest
from nexusrpc import Content, HandlerError, HandlerErrorType, Link, OperationError

from clients import (
    MalformedResponse,
    NexusClient,
    ServiceUnresolved,
    StillRunning,
    Unreachable,
)
from nexus_spec import parse_duration
from tests.clients.fake_clock import FakeClock
from tests.clients.scripted_server import (
    ScriptedServer,
    answer,
    handler_error,
    operation_error,
    started,
)
from tests.clients.services import OrderIn, Orders, Receipt

pytestmark = pytest.mark.anyio


@pytest.fixture
async def nexus(server: ScriptedServer, fake_clock: FakeClock) -> AsyncIterator[NexusClient]:
    async with NexusClient(server.url + "/services/", clock=fake_clock.clock) as client:
        yield client


async def test_a_typed_start_answered_at_once(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200, {"id": 7}, nexus_link='<https://h/x>; type="a.B"'))
    handle = await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert await handle.result() == Receipt(id=7)
    assert await handle.result(timeout=0) == Receipt(id=7)
    assert handle.token is None
    assert handle.links == (Link(url="https://h/x", type="a.B"),)
    assert (await handle.info()).state == "succeeded"
    await handle.cancel()
    [seen] = server.seen
    assert (seen.method, seen.target) == ("POST", "/services/orders%2Fv1/place")
    assert seen.body == b'{"sku":"tea","count":1}'
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["temporal-nexus-failure-support"] == "true"
    assert seen.headers["nexus-request-id"] == handle.request_id
    assert parse_duration(seen.headers["request-timeout"]) == timedelta(seconds=9.5)
    assert "operation-timeout" not in seen.headers
    assert "authorization" not in seen.headers


async def test_a_start_answered_201(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(started("t k"), answer(200, {"id": 8}))
    handle = await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert handle.token == "t k"
    assert "t k" not in repr(handle)
    assert await handle.result() == Receipt(id=8)
    asked = server.seen[1]
    assert asked.method == "GET"
    assert asked.target == "/services/orders%2Fv1/place/result?wait=45000ms"
    assert asked.headers["nexus-operation-token"] == "t k"


async def test_a_start_by_names(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200, {"any": [1]}))
    handle = await nexus.start(("a?b", "c#d é"), {"k": 1})
    assert await handle.result() == {"any": [1]}
    assert server.seen[0].target == "/services/a%3Fb/c%23d%20%C3%A9"


async def test_null_has_neither_body_nor_type(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200))
    handle = await nexus.start(Orders.ping, None)
    assert await handle.result() is None  # type: ignore[func-returns-value]
    [seen] = server.seen
    assert seen.body == b""
    assert "content-type" not in seen.headers


async def test_all_that_a_start_may_carry(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(started())
    await nexus.start(
        Orders.place,
        OrderIn(sku="tea"),
        request_id="again",
        operation_timeout=timedelta(days=2),
        wait=1.2,
        callback="https://me.example/cb?x=1&y=ü",
        callback_headers={"Token": "s3cret"},
        links=[Link(url="https://me/a,b", type="a.B"), Link(url="https://me/c", type="a.B")],
        headers={"Traceparent": "00-1"},
    )
    [seen] = server.seen
    assert seen.target.endswith(
        "/place?callback=https%3A%2F%2Fme.example%2Fcb%3Fx%3D1%26y%3D%C3%BC"
    )
    assert seen.headers["nexus-request-id"] == "again"
    assert parse_duration(seen.headers["operation-timeout"]) == timedelta(days=2)
    assert seen.headers["prefer"] == "wait=2"
    assert parse_duration(seen.headers["request-timeout"]) == timedelta(seconds=10.7)
    assert seen.headers["nexus-callback-token"] == "s3cret"
    assert seen.headers.get_all("nexus-link") == [
        '<https://me/a%2Cb>; type="a.B"',
        '<https://me/c>; type="a.B"',
    ]
    assert seen.headers["traceparent"] == "00-1"


async def test_an_operation_that_fails_at_once(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(operation_error("canceled"))
    with pytest.raises(OperationError, match="out of stock") as caught:
        await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert caught.value.state is nexusrpc.OperationErrorState.CANCELED
    assert str(caught.value.__cause__) == "shelf empty"
    assert len(server.seen) == 1


async def test_retries_repeat_the_request_but_for_the_time_that_is_left(
    nexus: NexusClient, server: ScriptedServer, fake_clock: FakeClock
) -> None:
    server.will_answer(
        None,
        answer(502, b"<html>"),
        handler_error("RESOURCE_EXHAUSTED", 429, retry_after="12"),
        started(),
    )
    await nexus.start(Orders.place, OrderIn(sku="tea"), operation_timeout=25)
    assert len(server.seen) == 4
    assert len({seen.headers["nexus-request-id"] for seen in server.seen}) == 1
    assert len({(seen.target, seen.body) for seen in server.seen}) == 1
    left = [parse_duration(seen.headers["operation-timeout"]) for seen in server.seen]
    assert left[0] == timedelta(seconds=25)
    assert left == sorted(left, reverse=True)
    assert left[3] < timedelta(seconds=13)
    assert fake_clock.sleeps[2] == 12


async def test_the_request_timeout_shrinks_with_the_deadline(
    nexus: NexusClient, server: ScriptedServer
) -> None:
    server.will_answer(
        handler_error("UNAVAILABLE", 503, retry_after="22"), handler_error("UNAVAILABLE", 503)
    )
    with pytest.raises(HandlerError):
        await nexus.start(Orders.place, OrderIn(sku="tea"))
    promised = [parse_duration(seen.headers["request-timeout"]) for seen in server.seen]
    assert promised[0] == timedelta(seconds=9.5)
    assert promised[1] == timedelta(seconds=7.5)


async def test_what_is_final_is_not_repeated(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(handler_error("BAD_REQUEST", 422, "no such sku"))
    with pytest.raises(HandlerError, match="no such sku") as caught:
        await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert caught.value.type is HandlerErrorType.BAD_REQUEST
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "malformed",
    [
        answer(201),
        answer(201, b"<html>"),
        answer(201, [1]),
        answer(201, {"state": "running"}),
        answer(201, {"token": "", "state": "running"}),
        answer(201, {"token": "a\nb", "state": "running"}),
        answer(201, {"token": 1, "state": "running"}),
        answer(201, {"token": "t"}),
        answer(201, {"token": "t", "state": "succeeded"}),
        answer(202),
        answer(204),
        answer(301, location="/elsewhere"),
        answer(307, location="/elsewhere"),
        answer(424, b"<html>"),
        answer(200, b"x", content_encoding="gzip"),
    ],
)
async def test_answers_outside_of_the_protocol(
    malformed: bytes, nexus: NexusClient, server: ScriptedServer
) -> None:
    server.will_answer(malformed)
    with pytest.raises(MalformedResponse) as caught:
        await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert caught.value.status == int(malformed[9:12])
    assert len(server.seen) == 1


async def test_an_oversized_result_is_refused(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200, b"x" * (2 * 1024 * 1024 + 100_000)))
    with pytest.raises(MalformedResponse, match="larger than"):
        await nexus.start(Orders.place, OrderIn(sku="tea"))


async def test_a_result_of_another_type_is_malformed(
    nexus: NexusClient, server: ScriptedServer
) -> None:
    server.will_answer(answer(200, {"id": "seven"}))
    handle = await nexus.start(Orders.place, OrderIn(sku="tea"))
    with pytest.raises(MalformedResponse, match="id"):
        await handle.result()


async def test_a_malformed_link_does_not_lose_the_operation(
    nexus: NexusClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.will_answer(started("t", nexus_link="<broken"))
    with caplog.at_level(logging.WARNING):
        handle = await nexus.start(Orders.place, OrderIn(sku="tea"))
    assert (handle.token, handle.links) == ("t", ())
    assert "links" in caplog.text


async def test_nobody_listens(server: ScriptedServer, fake_clock: FakeClock) -> None:
    url = server.url
    await server.stop()
    async with NexusClient(url, clock=fake_clock.clock, timeout=5) as nexus:
        with pytest.raises(Unreachable):
            await nexus.start(("a", "b"))
    assert 0 < sum(fake_clock.sleeps) < 5


async def test_the_key_goes_out_and_shows_nowhere(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.will_answer(handler_error("UNAUTHENTICATED", 401))
    with caplog.at_level(logging.DEBUG):
        async with NexusClient(server.url, api_key="k3y", headers={"X-Team": "tea"}) as nexus:
            with pytest.raises(HandlerError) as caught:
                await nexus.start(("a", "b"), headers={"x-team": "coffee"})
            shown = repr(nexus) + repr(vars(nexus)) + repr(caught.value)
    [seen] = server.seen
    assert seen.headers.get_all("authorization") == ["Bearer k3y"]
    assert seen.headers.get_all("x-team") == ["coffee"]
    assert "k3y" not in shown
    assert "k3y" not in caplog.text


@pytest.mark.parametrize("key", ["", "s3cr\net", "ключ", " s3cret"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        NexusClient("http://h", api_key=key)
    assert not key or key.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Nexus-Request-Id", "content-type", "Request-Timeout", "host", "a b", "Connection"]
)
async def test_headers_that_the_client_writes_are_refused(name: str, nexus: NexusClient) -> None:
    with pytest.raises(ValueError, match="header"):
        await nexus.start(("a", "b"), headers={name: "x"})
    with pytest.raises(ValueError, match="header"):
        NexusClient("http://h", headers={name: "x"})


@pytest.mark.parametrize(
    "url", ["", "h:8080", "ftp://h/", "http://", "http://u:p4ss@h/", "http://h/?a=b", "http://h/#a"]
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        NexusClient(url)
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    "names", [("", "b"), ("a", ""), (".", "b"), ("a", ".."), ("a" * 1001, "b")]
)
async def test_names_that_cannot_be_addressed_are_refused(
    names: tuple[str, str], nexus: NexusClient
) -> None:
    with pytest.raises(ValueError, match="name"):
        await nexus.start(names)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_senseless_timeouts_are_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"duration|timeout"):
        NexusClient("http://h", timeout=timeout)


async def test_service_goes_with_an_operation(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200, {"id": 1}))
    loose = nexusrpc.Operation[OrderIn, Receipt](
        name="place", input_type=OrderIn, output_type=Receipt
    )
    with pytest.raises(ServiceUnresolved):
        await nexus.start(loose, OrderIn(sku="tea"))
    assert (await nexus.execute(loose, OrderIn(sku="tea"), service="s")).id == 1
    assert (await nexus.execute(loose, OrderIn(sku="tea"), service=Orders)).id == 1
    with pytest.raises(ValueError, match="service="):
        await nexus.start(("a", "b"), service="s")
    assert [seen.target for seen in server.seen] == [
        "/services/s/place",
        "/services/orders%2Fv1/place",
    ]


async def test_execute_asks_for_the_result_with_the_start(
    nexus: NexusClient, server: ScriptedServer
) -> None:
    server.will_answer(answer(200, {"id": 1}))
    assert await nexus.execute(Orders.place, OrderIn(sku="tea")) == Receipt(id=1)
    await nexus.execute(Orders.place, OrderIn(sku="tea"), timeout=3)
    await nexus.execute(Orders.place, OrderIn(sku="tea"), timeout=0)
    await nexus.execute(Orders.place, OrderIn(sku="tea"), wait=7)
    asked = [seen.headers.get("prefer") for seen in server.seen]
    assert asked == ["wait=20", "wait=3", None, "wait=7"]


async def test_execute_waits_where_it_must(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(started(), answer(408), answer(200, {"id": 2}))
    assert await nexus.execute(Orders.place, OrderIn(sku="tea")) == Receipt(id=2)


async def test_execute_gives_up_with_the_token(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(started("tok9"), answer(412))
    with pytest.raises(StillRunning) as caught:
        await nexus.execute(Orders.place, OrderIn(sku="tea"), timeout=2)
    assert caught.value.token == "tok9"
    assert isinstance(caught.value, TimeoutError)


async def test_a_handle_from_a_token(nexus: NexusClient, server: ScriptedServer) -> None:
    server.will_answer(answer(200, {"id": 3}))
    assert await nexus.handle(Orders, Orders.place, "tok").result() == Receipt(id=3)
    assert await nexus.handle("s", "o", "tok").result() == {"id": 3}
    for token in ("", "a\nb"):
        with pytest.raises(ValueError, match="token"):
            nexus.handle("s", "o", token)


class AsyncSerializer:
    async def serialize(self, value: Any) -> Content:
        return Content(
            headers={"Content-Type": "text/x", "x-other": "dropped"}, data=str(value).encode()
        )

    async def deserialize(self, content: Content, as_type: type[Any] | None = None) -> Any:
        return (content.headers["content-type"], content.data)


async def test_another_serializer(server: ScriptedServer) -> None:
    server.will_answer(answer(200, b"out", content_type="text/y"))
    async with NexusClient(server.url, serializer=AsyncSerializer()) as nexus:
        assert await nexus.execute(("a", "b"), "in") == ("text/y", b"out")
    [seen] = server.seen
    assert (seen.headers["content-type"], seen.body) == ("text/x", b"in")
    assert "x-other" not in seen.headers
