from datetime import UTC, datetime

import pytest
from nexusrpc import Content, HandlerError, HandlerErrorType, Link

from clients import CompletionClient, MalformedResponse, UnknownOutcome
from nexus_spec import Completion, OperationState, parse_completion
from tests.clients.scripted_server import ScriptedServer, answer, handler_error

pytestmark = pytest.mark.anyio

COMPLETION = Completion(
    state=OperationState.SUCCEEDED,
    token="tok",
    start_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    close_time=datetime(2026, 1, 2, 3, 4, 6, 789000, tzinfo=UTC),
    links=(Link(url="https://h/x", type="a.B"),),
    content=Content(headers={"content-type": "application/json"}, data=b"1"),
)


async def test_a_completion_arrives_as_it_was(server: ScriptedServer) -> None:
    server.will_answer(answer(204))
    async with CompletionClient() as client:
        response = await client.complete(
            server.url + "/cb",
            COMPLETION,
            headers=[("Token", "t0k"), ("nexus-operation-state", "failed")],
        )
    assert response.status == 204
    [seen] = server.seen
    assert parse_completion(seen.headers, seen.body) == COMPLETION
    assert seen.headers["token"] == "t0k"
    assert seen.headers.get_all("nexus-operation-state") == ["succeeded"]


async def test_a_refusal_is_raised(server: ScriptedServer) -> None:
    server.will_answer(handler_error("NOT_FOUND", 404), answer(500, b"oops"))
    async with CompletionClient() as client:
        with pytest.raises(HandlerError) as caught:
            await client.complete(server.url, COMPLETION)
        assert caught.value.type is HandlerErrorType.NOT_FOUND
        with pytest.raises(HandlerError) as caught:
            await client.complete(server.url, COMPLETION)
        assert caught.value.type is HandlerErrorType.INTERNAL
    # Once each: when to try again is for the delivery to decide.
    assert len(server.seen) == 2


async def test_a_redirect_is_not_followed(server: ScriptedServer) -> None:
    server.will_answer(answer(308, location="/elsewhere"))
    async with CompletionClient() as client:
        with pytest.raises(MalformedResponse):
            await client.complete(server.url, COMPLETION)
    assert len(server.seen) == 1


async def test_a_sender_of_one_s_own() -> None:
    class Failing:
        closed = False

        async def post(self, *args: object, **kwargs: object) -> object:
            raise UnknownOutcome("reset")

        async def aclose(self) -> None:
            self.closed = True

    sender = Failing()
    async with CompletionClient(sender) as client:  # type: ignore[arg-type]
        with pytest.raises(UnknownOutcome):
            await client.complete("http://peer", COMPLETION)
    assert sender.closed
