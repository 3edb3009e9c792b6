from collections.abc import AsyncIterator
from typing import cast

import httpx
import pytest
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState

from clients import (
    MalformedResponse,
    NexusClient,
    NotSupported,
    OperationHandle,
    StillRunning,
    UnknownOutcome,
)
from clients.endpoint import Endpoint
from nexus_spec import OperationState, parse_duration
from tests.clients.fake_clock import FakeClock
from tests.clients.scripted_server import (
    ScriptedServer,
    answer,
    handler_error,
    operation_error,
)
from tests.clients.services import Orders, Receipt

pytestmark = pytest.mark.anyio


@pytest.fixture
async def handle(
    server: ScriptedServer, fake_clock: FakeClock
) -> AsyncIterator[OperationHandle[Receipt]]:
    async with NexusClient(server.url, clock=fake_clock.clock) as client:
        yield client.handle(Orders, Orders.place, "tok")


async def test_asked_again_until_it_has_ended(
    handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(
        answer(408), answer(412), handler_error("REQUEST_TIMEOUT", 408), answer(200, {"id": 4})
    )
    assert await handle.result() == Receipt(id=4)
    assert len(server.seen) == 4


async def test_a_server_that_does_not_wait_is_asked_ever_more_slowly(
    handle: OperationHandle[Receipt], server: ScriptedServer, fake_clock: FakeClock
) -> None:
    server.will_answer(*[answer(412)] * 8, answer(200, {"id": 4}))
    await handle.result()
    assert fake_clock.sleeps == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


async def test_the_wait_shrinks_with_the_time_that_is_left(
    handle: OperationHandle[Receipt], server: ScriptedServer, fake_clock: FakeClock
) -> None:
    server.will_answer(answer(412))
    with pytest.raises(StillRunning, match="within 1 s") as caught:
        await handle.result(timeout=1)
    assert caught.value.token == "tok"
    assert fake_clock.elapsed == pytest.approx(1)
    asked = [seen.target.rpartition("wait=")[2] for seen in server.seen]
    # The last question is asked when the time is over, without waiting.
    assert asked == ["1000ms", "900ms", "700ms", "300ms", "/orders%2Fv1/place/result"]


async def test_a_server_that_waits_is_asked_again_at_once(fake_clock: FakeClock) -> None:
    class Waits(httpx.AsyncBaseTransport):
        asked = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.asked += 1
            fake_clock.elapsed += 45
            return httpx.Response(408 if self.asked < 5 else 200)

    async with NexusClient("http://h", transport=Waits(), clock=fake_clock.clock) as client:
        assert await client.handle("s", "o", "tok").result() is None
    assert fake_clock.sleeps == []


def test_a_handle_needs_something_to_go_by() -> None:
    with pytest.raises(ValueError, match="token"):
        OperationHandle(cast(Endpoint, None), "s", "o", token=None)


async def test_without_time_the_question_is_asked_once(
    handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(answer(412), answer(200, {"id": 5}))
    with pytest.raises(StillRunning):
        await handle.result(timeout=0)
    assert server.seen[0].target.endswith("/result")
    assert await handle.result(timeout=0) == Receipt(id=5)
    assert len(server.seen) == 2


async def test_a_request_may_take_as_long_as_it_was_asked_to_wait(
    handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(answer(200, {"id": 5}))
    await handle.result(timeout=20)
    assert parse_duration(server.seen[0].headers["request-timeout"]).total_seconds() == 29.5


@pytest.mark.parametrize("state", ["failed", "canceled"])
async def test_the_operation_failed(
    state: str, handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(answer(412), operation_error(state))
    with pytest.raises(OperationError, match="out of stock") as caught:
        await handle.result()
    assert caught.value.state is OperationErrorState(state)
    assert str(caught.value.__cause__) == "shelf empty"


@pytest.mark.parametrize(
    "reply", [handler_error("NOT_FOUND", 404), answer(404, {"message": "no such operation"})]
)
async def test_the_token_is_unknown(
    reply: bytes, handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(reply)
    for question in (handle.result, handle.info):
        with pytest.raises(HandlerError) as caught:
            await question()
        assert caught.value.type is HandlerErrorType.NOT_FOUND


@pytest.mark.parametrize(
    "reply",
    [
        answer(400, {"message": 'invalid request method: expected POST, got "GET"'}),
        handler_error("BAD_REQUEST", 400),
        answer(404, b"404 page not found"),
        answer(404, {"detail": "Not Found"}),
        answer(405),
        answer(501),
        answer(204),
        answer(201, {"token": "t", "state": "running"}),
    ],
)
async def test_a_server_without_the_extension(
    reply: bytes, handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(reply)
    with pytest.raises(NotSupported, match="callback_receiver"):
        await handle.result()
    with pytest.raises(NotSupported):
        await handle.info()
    assert len(server.seen) == 2


async def test_a_short_outage_is_bridged_and_a_long_one_told(
    handle: OperationHandle[Receipt], server: ScriptedServer, fake_clock: FakeClock
) -> None:
    server.will_answer(None, answer(503), answer(200, {"id": 6}), None)
    assert await handle.result() == Receipt(id=6)
    with pytest.raises(UnknownOutcome):
        await handle.result(timeout=1)
    assert fake_clock.elapsed > 20


async def test_other_errors_of_the_request(
    handle: OperationHandle[Receipt], server: ScriptedServer
) -> None:
    server.will_answer(handler_error("UNAUTHORIZED", 403))
    with pytest.raises(HandlerError):
        await handle.result()


async def test_info(handle: OperationHandle[Receipt], server: ScriptedServer) -> None:
    server.will_answer(answer(200, {"token": "tok", "state": "failed"}), answer(200, b"<html>"))
    assert (await handle.info()).state is OperationState.FAILED
    [seen] = server.seen
    assert (seen.method, seen.target) == ("GET", "/orders%2Fv1/place")
    assert seen.headers["nexus-operation-token"] == "tok"
    with pytest.raises(MalformedResponse):
        await handle.info()


async def test_cancel(handle: OperationHandle[Receipt], server: ScriptedServer) -> None:
    server.will_answer(answer(503), answer(202))
    await handle.cancel()
    assert len(server.seen) == 2
    seen = server.seen[1]
    assert (seen.method, seen.target) == ("POST", "/orders%2Fv1/place/cancel")
    assert (seen.headers["nexus-operation-token"], seen.body) == ("tok", b"")
    assert seen.headers["temporal-nexus-failure-support"] == "true"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (handler_error("NOT_FOUND", 404), HandlerError),
        (handler_error("NOT_IMPLEMENTED", 501), HandlerError),
        (answer(200), MalformedResponse),
        (answer(307, location="/"), MalformedResponse),
    ],
)
async def test_cancel_refused(
    reply: bytes,
    error: type[Exception],
    handle: OperationHandle[Receipt],
    server: ScriptedServer,
) -> None:
    server.will_answer(reply)
    with pytest.raises(error):
        await handle.cancel()
    assert len(server.seen) == 1
