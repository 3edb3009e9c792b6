"""Requests to other endpoints, over real sockets to a server that answers as it is told."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from nexusrpc import Content, Link, OperationErrorState

from callbacks.database import SqliteDatabase
from callbacks.signing_keys import CALLS, SigningKeys
from clients.callback_tokens import OutgoingCall, key_id_of, verify_call
from gateway.schema import migrate
from handlers.outgoing_calls import (
    CallNotAnswered,
    CallRefused,
    CallStart,
    CallStarted,
    CannotBeAsked,
    OutgoingCalls,
    RemoteEndpoint,
    RemoteOperation,
    UnknownEndpoint,
)
from nexus_spec import Completion, OperationState
from tests.clients.scripted_server import (
    ScriptedServer,
    answer,
    handler_error,
    operation_error,
    started,
)

pytestmark = pytest.mark.anyio

PUBLIC_URL = "https://me.example"
BOOK = RemoteOperation(endpoint="shipping", service="shipping/v1", operation="book")
CALL = OutgoingCall("my-token", "book#1", "shipping")
START = CallStart(
    target=BOOK,
    call=CALL,
    request_id="r-1",
    content=Content(headers={"content-type": "application/json"}, data=b'{"to":"Bern"}'),
)
LINK = Link(url="https://me.example/orders/1", type="my.Order")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[SigningKeys]:
    path = tmp_path / "keys.db"
    migrate(f"sqlite:///{path}")
    database = SqliteDatabase(path)
    yield SigningKeys(database, CALLS)
    await database.aclose()


Open = Callable[..., OutgoingCalls]


@pytest.fixture
async def open_calls(server: ScriptedServer, keys: SigningKeys) -> AsyncIterator[Open]:
    """Open `OutgoingCalls` whose endpoint `shipping` is the server."""
    opened: list[OutgoingCalls] = []

    def open_calls(
        *, public_url: str | None = PUBLIC_URL, callbacks: bool = True, api_key: str | None = None
    ) -> OutgoingCalls:
        endpoint = RemoteEndpoint(url=f"{server.url}/base", api_key=api_key, callbacks=callbacks)
        opened.append(OutgoingCalls({"shipping": endpoint}, keys, public_url=public_url))
        return opened[-1]

    yield open_calls
    for calls in opened:
        await calls.aclose()


async def test_a_start_is_sent_with_all_that_belongs_to_it(
    server: ScriptedServer, open_calls: Open, keys: SigningKeys
) -> None:
    server.will_answer(started("t-1", nexus_link='<https://ship.example/1>; type="ship.Booking"'))
    outcome = await open_calls(api_key="nxk_1").start(
        replace(
            START, timeout_seconds=30.0, headers={"X-Tenant": "a"}, links=[LINK], traceparent="00-a"
        )
    )
    link = Link(url="https://ship.example/1", type="ship.Booking")
    assert outcome == CallStarted("t-1", (link,))
    [seen] = server.seen
    path, _, query = seen.target.partition("?")
    assert path == "/base/shipping%2Fv1/book"
    assert parse_qs(query) == {"callback": [f"{PUBLIC_URL}/nexus/callback"]}
    assert seen.body == b'{"to":"Bern"}'
    assert seen.headers["authorization"] == "Bearer nxk_1"
    assert seen.headers["nexus-request-id"] == "r-1"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["x-tenant"] == "a"
    assert seen.headers["traceparent"] == "00-a"
    assert seen.headers["nexus-link"] == '<https://me.example/orders/1>; type="my.Order"'
    assert 20_000 < int(seen.headers["operation-timeout"].removesuffix("ms")) <= 30_000
    token = seen.headers["nexus-callback-token"]
    assert verify_call(token, await keys.trusted(key_id_of(token))) == CALL


@pytest.mark.parametrize("how", [{"public_url": None}, {"callbacks": False}])
async def test_no_callback_is_asked_for_where_none_can_come(
    how: dict[str, None], server: ScriptedServer, open_calls: Open
) -> None:
    calls = open_calls(**how)
    assert not calls.is_called_back("shipping")
    server.will_answer(started())
    await calls.start(START)
    [seen] = server.seen
    assert urlsplit(seen.target).query == ""
    assert "nexus-callback-token" not in seen.headers
    assert "operation-timeout" not in seen.headers


async def test_an_inline_result_is_the_outcome(server: ScriptedServer, open_calls: Open) -> None:
    server.will_answer(answer(200, {"id": 7}, nexus_operation_state="succeeded"))
    outcome = await open_calls().start(START)
    assert isinstance(outcome, Completion)
    assert outcome.state is OperationState.SUCCEEDED
    assert outcome.content is not None
    assert outcome.content.data == b'{"id": 7}'


@pytest.mark.parametrize("state", ["failed", "canceled"])
async def test_an_end_at_once_is_the_outcome(
    state: str, server: ScriptedServer, open_calls: Open
) -> None:
    server.will_answer(operation_error(state, "out of stock"))
    outcome = await open_calls().start(START)
    assert isinstance(outcome, Completion)
    error = outcome.error()
    assert (error.state, str(error)) == (OperationErrorState(state), "out of stock")
    assert error.__cause__ is not None


def start(calls: OutgoingCalls) -> Awaitable[object]:
    return calls.start(START)


def ask(calls: OutgoingCalls) -> Awaitable[object]:
    return calls.ask(BOOK, "t-1")


def cancel(calls: OutgoingCalls) -> Awaitable[object]:
    return calls.cancel(BOOK, "t-1")


EVERY = [start, ask, cancel]


@pytest.mark.parametrize("request_", EVERY)
async def test_a_refusal_is_for_good(
    request_: Callable[[OutgoingCalls], Awaitable[object]], server: ScriptedServer, open_calls: Open
) -> None:
    server.will_answer(handler_error("NOT_FOUND", 404, "no such thing"))
    with pytest.raises(CallRefused) as refused:
        await request_(open_calls())
    assert (refused.value.type_name, refused.value.message) == ("NOT_FOUND", "no such thing")


@pytest.mark.parametrize("request_", EVERY)
@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        (handler_error("UNAVAILABLE", 503, retry_after="7"), 7.0),
        (handler_error("RESOURCE_EXHAUSTED", 429), 0.0),
        (answer(502, b"<html>"), 0.0),
        (answer(301, location="/elsewhere"), 0.0),
        (answer(204), 0.0),
        (None, 0.0),
    ],
)
async def test_what_is_no_answer_may_be_sent_again(
    script: bytes | None,
    seconds: float,
    request_: Callable[[OutgoingCalls], Awaitable[object]],
    server: ScriptedServer,
    open_calls: Open,
) -> None:
    server.will_answer(script)
    unanswered = (CallNotAnswered, CannotBeAsked) if request_ is ask else CallNotAnswered
    with pytest.raises(unanswered) as failed:
        await request_(open_calls())
    if isinstance(failed.value, CallNotAnswered):
        assert failed.value.retry_after_seconds == seconds
    assert len(server.seen) == 1


async def test_a_server_that_is_not_there_may_be_tried_again(
    server: ScriptedServer, open_calls: Open
) -> None:
    calls = open_calls()
    await server.stop()
    for request_ in EVERY:
        with pytest.raises(CallNotAnswered):
            await request_(calls)
    await server.start()


async def test_a_result_is_asked_for(server: ScriptedServer, open_calls: Open) -> None:
    calls = open_calls()
    server.will_answer(answer(412), answer(408), answer(200, "done"), operation_error("failed"))
    assert await calls.ask(BOOK, "t-1") is None
    assert await calls.ask(BOOK, "t-1", 2.5) is None
    done = await calls.ask(BOOK, "t-1")
    assert done is not None
    assert done.content is not None
    assert done.content.data == b'"done"'
    failed = await calls.ask(BOOK, "t-1")
    assert failed is not None
    assert failed.state is OperationState.FAILED
    assert [seen.target for seen in server.seen[:2]] == [
        "/base/shipping%2Fv1/book/result",
        "/base/shipping%2Fv1/book/result?wait=2500ms",
    ]
    assert {seen.headers["nexus-operation-token"] for seen in server.seen} == {"t-1"}


@pytest.mark.parametrize("script", [answer(404, b"404 page not found"), answer(501), answer(405)])
async def test_a_server_may_not_know_the_question(
    script: bytes, server: ScriptedServer, open_calls: Open
) -> None:
    server.will_answer(script)
    with pytest.raises(CannotBeAsked):
        await open_calls().ask(BOOK, "t-1")


async def test_a_cancel_is_sent(server: ScriptedServer, open_calls: Open) -> None:
    server.will_answer(answer(202))
    await open_calls().cancel(BOOK, "t-1")
    [seen] = server.seen
    assert seen.target == "/base/shipping%2Fv1/book/cancel"
    assert seen.headers["nexus-operation-token"] == "t-1"


async def test_an_unknown_endpoint_is_named(open_calls: Open) -> None:
    calls = open_calls()
    elsewhere = replace(BOOK, endpoint="billing")
    for attempt in (
        calls.start(replace(START, target=elsewhere)),
        calls.ask(elsewhere, "t"),
        calls.cancel(elsewhere, "t"),
    ):
        with pytest.raises(UnknownEndpoint, match=r"'billing'.*shipping.*endpoints\.billing\.url"):
            await attempt


@pytest.mark.parametrize("headers", [{"content-type": "x"}, {"a b": "x"}, {"x": "\n"}])
async def test_headers_that_cannot_be_sent_are_a_mistake(
    headers: dict[str, str], open_calls: Open
) -> None:
    with pytest.raises(ValueError, match="header"):
        await open_calls().start(replace(START, headers=headers))


def test_a_key_is_not_shown() -> None:
    assert "nxk_" not in repr(RemoteEndpoint(url="http://x", api_key="nxk_1"))
