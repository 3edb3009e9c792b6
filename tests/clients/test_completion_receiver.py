import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexusrpc import HandlerError, HandlerErrorType

from clients import CompletionReceiver
from clients.signatures import TOLERANCE, webhook_headers
from nexus_spec import Completion, Headers, OperationState
from tests.clients.fake_clock import BEGINNING, FakeClock

pytestmark = pytest.mark.anyio

PUBLIC_URL = "https://me.example/nexus/callbacks"
SUCCEEDED = {"nexus-operation-state": "succeeded", "content-type": "application/json"}


SECRET, OLD_SECRET = b"k" * 32, b"o" * 32


class Inbox:
    def __init__(self, error: Exception | None = None) -> None:
        self.taken: list[tuple[Completion, Headers]] = []
        self.error = error

    async def __call__(self, completion: Completion, headers: Headers) -> None:
        self.taken.append((completion, headers))
        if self.error is not None:
            raise self.error


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


async def post(
    receiver: CompletionReceiver,
    url: str = PUBLIC_URL,
    headers: dict[str, str] | None = None,
    body: bytes | AsyncIterator[bytes] = b"1",
    method: str = "POST",
) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver)) as http:
        given_headers = SUCCEEDED if headers is None else headers
        return await http.request(method, url, headers=given_headers, content=body)


def type_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    failure = response.json()
    assert failure["metadata"]["type"] == "nexus.HandlerError"
    assert failure["message"]
    return str(failure["details"]["type"])


async def test_a_completion_is_handed_over(inbox: Inbox) -> None:
    response = await post(
        CompletionReceiver(inbox), headers={**SUCCEEDED, "token": "t0k"}, body=b'{"a":1}'
    )
    assert (response.status_code, response.content) == (200, b"")
    [(completion, headers)] = inbox.taken
    assert completion.state is OperationState.SUCCEEDED
    assert completion.content is not None
    assert completion.content.data == b'{"a":1}'
    assert headers["token"] == "t0k"


async def test_a_failed_completion_is_handed_over(inbox: Inbox) -> None:
    body = json.dumps({"message": "no"}).encode()
    response = await post(
        CompletionReceiver(inbox), headers={"nexus-operation-state": "canceled"}, body=body
    )
    assert response.status_code == 200
    [(completion, _)] = inbox.taken
    assert completion.error().message == "no"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"1"),
        ({"nexus-operation-state": "running"}, b""),
        ({"nexus-operation-state": "done"}, b""),
        ({"nexus-operation-state": "failed"}, b""),
        ({"nexus-operation-state": "failed"}, b"<html>"),
        ({"nexus-operation-state": "failed"}, b'{"metadata":{"type":"nexus.OperationError"}}'),
        ({**SUCCEEDED, "nexus-operation-start-time": "yesterday"}, b"1"),
        ({**SUCCEEDED, "nexus-operation-close-time": "Mon"}, b"1"),
        ({**SUCCEEDED, "nexus-link": "<broken"}, b"1"),
    ],
)
async def test_what_is_no_completion_is_a_bad_request(
    headers: dict[str, str], body: bytes, inbox: Inbox
) -> None:
    response = await post(CompletionReceiver(inbox), headers=headers, body=body)
    assert response.status_code == 400
    assert type_of(response) == "BAD_REQUEST"
    assert inbox.taken == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_post(method: str, inbox: Inbox) -> None:
    response = await post(CompletionReceiver(inbox), method=method)
    assert (response.status_code, type_of(response)) == (400, "BAD_REQUEST")


async def test_too_large_a_body_is_read_and_refused(inbox: Inbox) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10):
            sent += 1
            yield b"x" * 100

    response = await post(CompletionReceiver(inbox, max_body_bytes=150), body=chunks())
    assert (response.status_code, type_of(response)) == (400, "BAD_REQUEST")
    assert sent == 10
    assert inbox.taken == []


async def test_a_body_without_end_is_not_read_for_ever(inbox: Inbox) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000:
            sent += 1
            yield b"x" * 1_000_000

    response = await post(CompletionReceiver(inbox), body=chunks())
    assert response.status_code == 400
    assert sent < 100


async def test_the_receiver_s_own_refusal_goes_back() -> None:
    error = HandlerError("later", type=HandlerErrorType.UNAVAILABLE, retryable_override=False)
    response = await post(CompletionReceiver(Inbox(error)))
    assert (response.status_code, type_of(response)) == (503, "UNAVAILABLE")
    assert response.headers["nexus-request-retryable"] == "false"
    assert response.json()["message"] == "later"


async def test_a_bug_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = await post(CompletionReceiver(Inbox(RuntimeError("pa55word"))))
    assert (response.status_code, type_of(response)) == (500, "INTERNAL")
    assert "pa55word" not in response.text
    assert "pa55word" in caplog.text


async def test_an_expected_completion_finds_its_waiter(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox, public_url=PUBLIC_URL + "/")
    expected, other = receiver.expect(), receiver.expect()
    assert expected.url.startswith(PUBLIC_URL + "/")
    assert expected.url != other.url
    assert expected.url not in repr(expected)
    waiting = asyncio.ensure_future(expected.wait(5))
    assert (await post(receiver, expected.url)).status_code == 200
    completion = await waiting
    assert completion.content is not None
    assert completion.content.data == b"1"
    assert expected.completion is completion
    assert other.completion is None
    assert inbox.taken == []


async def test_a_completion_that_came_first_is_kept() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    expected = receiver.expect()
    await post(receiver, expected.url)
    assert (await expected.wait(0)).state is OperationState.SUCCEEDED


async def test_a_repeated_completion_is_accepted_and_the_first_counts() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    expected = receiver.expect()
    for body in (b"1", b"2"):
        assert (await post(receiver, expected.url, body=body)).status_code == 200
    content = (await expected.wait()).content
    assert content is not None
    assert content.data == b"1"


async def test_a_completion_that_nobody_awaits_any_more_is_accepted() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    url = receiver.expect().url
    gc.collect()
    assert (await post(receiver, url)).status_code == 200


async def test_giving_up_leaves_the_others_waiting() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    expected = receiver.expect()
    with pytest.raises(TimeoutError):
        await expected.wait(0.01)
    cancelled = asyncio.ensure_future(expected.wait())
    patient = asyncio.ensure_future(expected.wait())
    await asyncio.sleep(0)
    cancelled.cancel()
    await post(receiver, expected.url)
    assert (await patient).state is OperationState.SUCCEEDED
    assert cancelled.cancelled()


async def test_the_receiver_may_be_served_by_another_thread() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    expected = receiver.expect()
    waiting = asyncio.ensure_future(expected.wait(5))
    await asyncio.sleep(0)
    response = await asyncio.to_thread(lambda: asyncio.run(post(receiver, expected.url)))
    assert response.status_code == 200
    assert (await waiting).state is OperationState.SUCCEEDED


async def test_an_unknown_id_is_not_found() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    issued = receiver.expect().url
    elsewhere = CompletionReceiver(public_url=PUBLIC_URL).expect().url
    flipped = issued[:-1] + ("0" if issued[-1] != "0" else "1")
    for url in (PUBLIC_URL, PUBLIC_URL + "/", elsewhere, flipped, issued[:-1], issued + "/x"):
        response = await post(receiver, url)
        assert (response.status_code, type_of(response)) == (404, "NOT_FOUND"), url


async def test_an_unknown_id_goes_to_the_callback_where_there_is_one(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox, public_url=PUBLIC_URL)
    assert (await post(receiver, PUBLIC_URL + "/other")).status_code == 200
    assert len(inbox.taken) == 1


def signed(
    body: bytes = b"1", *secrets: bytes, at: float = 0.0, state: str = "succeeded"
) -> dict[str, str]:
    """Return the headers of a completion signed so many seconds after the clocks' beginning."""
    moment = int(BEGINNING.timestamp() + at)
    signing = secrets or (SECRET,)
    made = webhook_headers("t0k_1", moment, body, signing, state=state, token="t0k")
    said = {"nexus-operation-state": state, "nexus-operation-token": "t0k"}
    return {**SUCCEEDED, **said, **dict(made)}


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


async def test_a_signed_completion_is_taken(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox, secrets=[SECRET], clock=FakeClock().clock)
    body = b'{"a":1}'
    assert (await post(receiver, headers=signed(body), body=body)).status_code == 200
    [(completion, headers)] = inbox.taken
    assert completion.content is not None
    assert completion.content.data == body
    assert headers["webhook-id"] == "t0k_1"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (SUCCEEDED, "the header webhook-id is missing"),
        ({}, "the header webhook-id is missing"),
        (without(signed(), "webhook-signature"), "the header webhook-signature is missing"),
        (signed(b"2"), "no trusted secret has signed this message"),
        (signed(b"1", b"x" * 32), "no trusted secret has signed this message"),
        (
            signed() | {"nexus-operation-state": "failed"},
            "no trusted secret has signed this state and token of the operation",
        ),
        (
            signed() | {"nexus-operation-token": "other"},
            "no trusted secret has signed this state and token of the operation",
        ),
        (
            without(signed(), "webhook-nexus-signature"),
            "the header webhook-nexus-signature is missing",
        ),
    ],
)
async def test_what_is_not_signed_is_unauthenticated(
    headers: dict[str, str], said: str, inbox: Inbox
) -> None:
    receiver = CompletionReceiver(
        inbox, public_url=PUBLIC_URL, secrets=[SECRET], clock=FakeClock().clock
    )
    expected = receiver.expect()
    # Whether an id was issued here or is unknown, nothing but this is told.
    for url in (PUBLIC_URL, expected.url):
        response = await post(receiver, url, headers=headers)
        assert (response.status_code, type_of(response)) == (401, "UNAUTHENTICATED")
        assert response.json()["message"] == said
    assert inbox.taken == []
    assert expected.completion is None


async def test_a_signed_completion_finds_its_waiter() -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL, secrets=[SECRET], clock=FakeClock().clock)
    expected = receiver.expect()
    assert (await post(receiver, expected.url, headers=signed())).status_code == 200
    assert (await expected.wait(0)).token == "t0k"
    assert (await post(receiver, PUBLIC_URL + "/x", headers=signed())).status_code == 404


async def test_a_signature_makes_no_completion(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox, secrets=[SECRET], clock=FakeClock().clock)
    response = await post(receiver, headers=signed(state="running"))
    assert (response.status_code, type_of(response)) == (400, "BAD_REQUEST")
    response = await post(receiver, headers=without(signed(), "nexus-operation-state"))
    assert (response.status_code, type_of(response)) == (400, "BAD_REQUEST")
    assert inbox.taken == []


async def test_an_old_completion_is_not_taken_again(inbox: Inbox) -> None:
    clock = FakeClock()
    receiver = CompletionReceiver(inbox, secrets=[SECRET], clock=clock.clock)
    clock.elapsed = TOLERANCE.total_seconds()
    assert (await post(receiver, headers=signed())).status_code == 200
    clock.elapsed += 1
    response = await post(receiver, headers=signed())
    assert (response.status_code, type_of(response)) == (401, "UNAUTHENTICATED")
    assert "301 s old" in response.json()["message"]
    assert (await post(receiver, headers=signed(at=clock.elapsed))).status_code == 200
    assert len(inbox.taken) == 2
    patient = CompletionReceiver(
        inbox, secrets=[SECRET], tolerance=timedelta(hours=1), clock=clock.clock
    )
    assert (await post(patient, headers=signed())).status_code == 200


async def test_a_receiver_may_know_the_old_and_the_new_secret(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox, secrets=[SECRET, OLD_SECRET], clock=FakeClock().clock)
    for secrets in ([OLD_SECRET], [SECRET, OLD_SECRET], [SECRET]):
        assert (await post(receiver, headers=signed(b"1", *secrets))).status_code == 200
    assert len(inbox.taken) == 3


async def test_the_body_is_drained_before_a_signature_is_refused(inbox: Inbox) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10):
            sent += 1
            yield b"x" * 100

    receiver = CompletionReceiver(inbox, secrets=[SECRET])
    assert (await post(receiver, body=chunks())).status_code == 401
    assert sent == 10


def test_no_secret_at_all_is_no_way_to_switch_it_off() -> None:
    with pytest.raises(ValueError, match="secrets is empty"):
        CompletionReceiver(secrets=[])


def test_a_receiver_without_a_public_url_expects_nothing() -> None:
    with pytest.raises(ValueError, match="public_url"):
        CompletionReceiver().expect()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/cb",
        "ftp://h/",
        "http://u:p@h/",
        "http://h/?a",
        "http://h/#a",
        "http://h/" + "a" * 900,
        "http://h/ä",
        "http://h/a b",
        "http://h/a\n",
    ],
)
def test_a_public_url_must_be_callable(url: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        CompletionReceiver(public_url=url)


def test_a_callback_url_stays_within_what_servers_allow() -> None:
    receiver = CompletionReceiver(public_url="http://h/" + "a" * 891)
    assert len(receiver.expect().url) <= 1000


names = st.sampled_from(
    [
        "nexus-operation-state",
        "nexus-operation-token",
        "nexus-operation-start-time",
        "nexus-operation-close-time",
        "nexus-link",
        "content-type",
        "content-encoding",
        "x",
    ]
)
values = st.one_of(
    st.sampled_from([b"succeeded", b"failed", b"canceled", b"running", b"<a:b>; type=c"]),
    st.binary(max_size=40),
)
bodies = st.one_of(st.binary(max_size=200), st.just(b"{}"))


@given(
    headers=st.lists(st.tuples(names.map(str.encode), values), max_size=8),
    body=bodies,
    path=st.text(max_size=60),
)
async def test_whatever_comes_is_answered_200_400_or_404(
    headers: list[tuple[bytes, bytes]], body: bytes, path: str
) -> None:
    receiver = CompletionReceiver(public_url=PUBLIC_URL)
    expected = receiver.expect()
    for target in (path, "/" + expected.url.rpartition("/")[2]):
        status, answered = await speak(receiver, target, headers, [body])
        assert status in {200, 400, 404}
        if status != 200:
            assert json.loads(answered)["metadata"]["type"] == "nexus.HandlerError"


async def speak(
    receiver: CompletionReceiver,
    path: str,
    headers: list[tuple[bytes, bytes]],
    chunks: list[bytes],
    *,
    leave: bool = False,
) -> tuple[int, bytes]:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": leave or n + 1 < len(chunks)}
        for n, chunk in enumerate(chunks)
    ]
    messages.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await receiver(scope, receive, send)
    if not sent:
        return 0, b""
    return sent[0]["status"], sent[1]["body"]


async def test_a_peer_that_leaves_gets_no_answer(inbox: Inbox) -> None:
    receiver = CompletionReceiver(inbox)
    headers = [(b"nexus-operation-state", b"succeeded")]
    assert await speak(receiver, "/", headers, [b"1"], leave=True) == (0, b"")
    assert inbox.taken == []


async def test_the_receiver_runs_on_its_own_too(inbox: Inbox) -> None:
    sent: list[str] = []
    messages = ["lifespan.startup", "lifespan.shutdown"]

    async def receive() -> dict[str, Any]:
        return {"type": messages.pop(0)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    receiver = CompletionReceiver(inbox)
    await receiver({"type": "lifespan"}, receive, send)
    await receiver({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
    with pytest.raises(RuntimeError, match="scope"):
        await receiver({"type": "telepathy"}, receive, send)
