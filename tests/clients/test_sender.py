import socket

import httpx
import pytest

from clients import HttpxSender, MalformedResponse, UnknownOutcome, Unreachable
from clients.sender import exchange, open_http_client
from nexus_spec import InvalidWireValue
from tests.clients.scripted_server import Drip, ScriptedServer, answer

pytestmark = pytest.mark.anyio


async def test_what_is_posted_arrives_byte_for_byte(server: ScriptedServer) -> None:
    server.will_answer(answer(200, b"ok", x_reply="\xe9"))
    sender = HttpxSender()
    try:
        response = await sender.post(
            server.url + "/cb%2Fx?a=%2F",
            [("Token", "caf\xe9"), ("Nexus-Link", "<a:b>"), ("Nexus-Link", "<c:d>")],
            b"\x00\xff",
            timeout=5,
        )
    finally:
        await sender.aclose()
    [seen] = server.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/cb%2Fx?a=%2F", b"\x00\xff")
    assert seen.headers["token"] == "caf\xe9"
    assert seen.headers.get_all("nexus-link") == ["<a:b>", "<c:d>"]
    assert seen.headers["accept-encoding"] == "identity"
    assert (response.status, response.body) == (200, b"ok")
    assert response.headers["x-reply"] == "\xe9"
    assert response.address == server.url.removeprefix("http://")


async def test_headers_of_the_connection_are_left_to_it(server: ScriptedServer) -> None:
    server.will_answer(answer(200))
    sender = HttpxSender()
    try:
        await sender.post(
            server.url,
            [("Content-Length", "0"), ("Transfer-Encoding", "chunked"), ("Host", "elsewhere")],
            b"body",
            timeout=5,
        )
    finally:
        await sender.aclose()
    [seen] = server.seen
    assert seen.body == b"body"
    assert "transfer-encoding" not in seen.headers
    assert seen.headers["host"] != "elsewhere"


@pytest.mark.parametrize(
    "header", [("a b", "x"), ("", "x"), ("x", "a\r\nb: c"), ("x", "\u20ac"), ("x", " a")]
)
async def test_a_header_that_http_forbids_is_refused(header: tuple[str, str]) -> None:
    sender = HttpxSender()
    try:
        with pytest.raises(InvalidWireValue) as caught:
            await sender.post("http://127.0.0.1:9/", [header], b"", timeout=5)
    finally:
        await sender.aclose()
    assert "b: c" not in str(caught.value)


async def test_a_refused_connection_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    sender = HttpxSender()
    try:
        with pytest.raises(Unreachable):
            await sender.post(f"http://127.0.0.1:{port}/", [], b"", timeout=5)
    finally:
        await sender.aclose()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://[::/", "no url", "http://a b/"])
async def test_what_is_no_url_is_unreachable(url: str) -> None:
    sender = HttpxSender()
    try:
        with pytest.raises(Unreachable):
            await sender.post(url, [], b"", timeout=5)
    finally:
        await sender.aclose()


async def test_a_connection_closed_without_an_answer_is_an_unknown_outcome(
    server: ScriptedServer,
) -> None:
    server.will_answer(None)
    sender = HttpxSender()
    try:
        with pytest.raises(UnknownOutcome):
            await sender.post(server.url, [], b"", timeout=5)
    finally:
        await sender.aclose()


async def test_a_listener_that_never_answers_is_an_unknown_outcome() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        sender = HttpxSender()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            with pytest.raises(UnknownOutcome, match=r"no answer within 0\.1 s"):
                await sender.post(url, [], b"", timeout=0.1)
        finally:
            await sender.aclose()


async def test_a_dripping_body_ends_at_the_timeout(server: ScriptedServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    server.will_answer(Drip(head))
    http = open_http_client(None)
    sender = HttpxSender()
    try:
        with pytest.raises(UnknownOutcome):
            await exchange(http, "GET", server.url, [], b"", timeout=0.2)
        # For a post the status has told all there is to know.
        response = await sender.post(server.url, [], b"", timeout=0.2)
    finally:
        await sender.aclose()
        await http.aclose()
    assert response.status == 200
    assert set(response.body) == {ord("x")}


async def test_a_body_past_the_limit_is_cut_off_or_refused(server: ScriptedServer) -> None:
    server.will_answer(answer(200, b"y" * 5000))
    sender = HttpxSender(max_response_bytes=100)
    http = open_http_client(None)
    try:
        assert (await sender.post(server.url, [], b"", timeout=5)).body == b"y" * 100
        with pytest.raises(MalformedResponse, match="larger than 100 bytes") as caught:
            await exchange(http, "GET", server.url, [], b"", timeout=5, max_response_bytes=100)
    finally:
        await sender.aclose()
        await http.aclose()
    assert caught.value.status == 200


async def test_a_body_broken_off_keeps_its_status_for_a_post(server: ScriptedServer) -> None:
    broken = b"HTTP/1.1 204 OK\r\nContent-Length: 10\r\n\r\nabc"
    server.will_answer(broken.replace(b"204", b"400"), None)
    sender = HttpxSender()
    try:
        response = await sender.post(server.url, [], b"", timeout=0.3)
    finally:
        await sender.aclose()
    assert (response.status, response.body) == (400, b"abc")


async def test_a_compressed_answer_is_refused_unread(server: ScriptedServer) -> None:
    server.will_answer(answer(200, b"\x1f\x8b", content_encoding="gzip"))
    http = open_http_client(None)
    try:
        with pytest.raises(MalformedResponse, match="gzip"):
            await exchange(http, "GET", server.url, [], b"", timeout=5)
    finally:
        await http.aclose()


async def test_cookies_are_not_kept_and_redirects_not_followed(server: ScriptedServer) -> None:
    server.will_answer(
        answer(307, set_cookie="a=b", location="/elsewhere"), answer(200), answer(200)
    )
    sender = HttpxSender()
    try:
        first = await sender.post(server.url, [], b"", timeout=5)
        await sender.post(server.url, [], b"", timeout=5)
    finally:
        await sender.aclose()
    assert first.status == 307
    assert [seen.target for seen in server.seen] == ["/", "/"]
    assert "cookie" not in server.seen[1].headers


async def test_a_timeout_of_a_silent_transport_counts_as_sent() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("quiet", request=request)

    sender = HttpxSender(transport=Silent())
    with pytest.raises(UnknownOutcome):
        await sender.post("http://peer/", [], b"", timeout=5)
    await sender.aclose()


async def test_a_timeout_while_dialling_is_unreachable() -> None:
    class Dialling(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await request.extensions["trace"]("connection.connect_tcp.started", {})
            raise TimeoutError

    sender = HttpxSender(transport=Dialling())
    with pytest.raises(Unreachable):
        await sender.post("http://peer/", [], b"", timeout=5)
    await sender.aclose()
