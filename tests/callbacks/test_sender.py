import asyncio
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httptools
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callbacks.egress import AllowRule, EgressPolicy, check_callback_url
from callbacks.errors import AddressRefused, HeaderRefused, NotSent, UrlRefused
from callbacks.header_rules import check_callback_headers
from callbacks.sender import AiohttpSender, _Attempt, _attempt
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import Sender
from tests.callbacks.peers import (
    OK,
    PRIVATE,
    Authority,
    Peer,
    Scene,
    answering,
    resolving,
    silent,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


# --- what is sent ---


async def test_sends_the_request_as_it_was_given(scene: Scene) -> None:
    peer = await scene.peer(
        answering(b"HTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhi")
    )
    sender: Sender = scene.sender()
    response = await sender.post(
        f"http://127.0.0.1:{peer.port}/a%2fb/../c;d?x=%7e&y=[1]&z=a+b",
        [("Token", "t"), ("Nexus-Link", "<a:b>"), ("nexus-link", "<c:d>"), ("X", "")],
        b"body",
        timeout=5,
    )
    assert response.status == 201
    assert response.headers["x-a"] == "b"
    assert response.body == b"hi"
    assert response.address == f"127.0.0.1:{peer.port}"
    (request,) = peer.requests
    assert request.line == b"POST /a%2fb/../c;d?x=%7e&y=[1]&z=a+b HTTP/1.1"
    assert request.body == b"body"
    assert request.values("token") == [b"t"]
    assert request.values("nexus-link") == [b"<a:b>", b"<c:d>"]
    assert request.values("host") == [f"127.0.0.1:{peer.port}".encode()]
    assert request.values("user-agent") == [b"nexus-rpc-gateway"]
    assert request.values("accept-encoding") == [b"identity"]
    assert request.values("content-type") == []
    assert request.values("cookie") == []


async def test_values_leave_as_the_bytes_that_came(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    value = "café €".encode().decode("latin-1")
    await scene.sender().post(peer.url, [("token", value)], b"", timeout=5)
    assert peer.requests[0].values("token") == ["café €".encode()]


@pytest.mark.parametrize("size", [0, 1, 2 * 1024 * 1024])
async def test_bodies_of_any_size_arrive_whole(scene: Scene, size: int) -> None:
    peer = await scene.peer(answering(OK))
    body = b"x" * size
    await scene.sender().post(peer.url, [("Content-Type", "text/x")], body, timeout=10)
    assert peer.requests[0].body == body
    assert peer.requests[0].values("content-length") == [str(size).encode()]
    assert peer.requests[0].values("content-type") == [b"text/x"]


async def test_the_senders_own_headers_cannot_be_overridden(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    own = [("Content-Length", "0"), ("Host", "evil"), ("Transfer-Encoding", "chunked")]
    own += [("Connection", "close"), ("Expect", "100-continue"), ("Proxy-X", "1")]
    await scene.sender().post(peer.url, own, b"body", timeout=5)
    (request,) = peer.requests
    assert request.body == b"body"
    assert request.values("host") == [f"127.0.0.1:{peer.port}".encode()]
    for name in ("transfer-encoding", "connection", "expect", "proxy-x"):
        assert request.values(name) == []


@pytest.mark.parametrize(
    "header", [("a b", "c"), ("", "x"), ("a", "b\r\nc: d"), ("a", "b\x00"), ("a\r\nb", "c")]
)
async def test_malformed_headers_are_never_sent(scene: Scene, header: tuple[str, str]) -> None:
    peer = await scene.peer(answering(OK))
    with pytest.raises(HeaderRefused):
        await scene.sender().post(peer.url, [header], b"", timeout=5)
    assert peer.connections == 0


async def test_connections_are_reused(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    sender = scene.sender()
    addresses = {(await sender.post(peer.url, [], b"x", timeout=5)).address for _ in range(5)}
    assert len(peer.requests) == 5
    assert peer.connections == 1
    assert addresses == {f"127.0.0.1:{peer.port}"}


async def test_cookies_are_neither_kept_nor_sent(scene: Scene) -> None:
    peer = await scene.peer(
        answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n")
    )
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    for _ in range(2):
        await sender.post(f"http://peer.example:{peer.port}/", [], b"", timeout=5)
    assert peer.requests[1].values("cookie") == []


async def test_proxies_of_the_environment_are_ignored(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await scene.peer(answering(OK))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await scene.sender().post(peer.url, [], b"", timeout=5)).status == 200


# --- answers ---


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nL: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
async def test_every_framing_is_read(scene: Scene, data: bytes) -> None:
    peer = await scene.peer(answering(data, then_close=True))
    response = await scene.sender().post(peer.url, [], b"x", timeout=5)
    assert 200 <= response.status < 300


@pytest.mark.parametrize("size", [4096, 4097, 1_000_000])
async def test_a_long_body_is_cut_at_the_cap(scene: Scene, size: int) -> None:
    peer = await scene.peer(
        answering(f"HTTP/1.1 500 No\r\nContent-Length: {size}\r\n\r\n".encode() + b"x" * size)
    )
    sender = scene.sender()
    for _ in range(2):
        response = await sender.post(peer.url, [], b"", timeout=5)
        assert response.status == 500
        assert response.body == b"x" * 4096
    # The rest of a body that was not read must not be taken for the next answer.
    assert len(peer.requests) == 2


# --- never sent ---


async def test_a_closed_port_is_unreachable(scene: Scene) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="not reached"):
            await scene.sender().post(
                f"http://127.0.0.1:{unused.getsockname()[1]}/", [], b"", timeout=5
            )


async def test_a_name_without_addresses_is_unreachable(scene: Scene) -> None:
    async def fail(host: str, _port: int) -> Sequence[str]:
        raise OSError(f"no such host: {host}")

    for resolver in (fail, resolving([])):
        sender = scene.sender(resolver=resolver)
        with pytest.raises(Unreachable, match=r"gone\.example"):
            await sender.post("http://gone.example/", [], b"", timeout=5)


async def test_a_name_server_that_hangs_is_unreachable(scene: Scene) -> None:
    async def hang(_host: str, _port: int) -> Sequence[str]:
        await asyncio.get_running_loop().create_future()
        return []

    with pytest.raises(Unreachable, match="no answer within"):
        await scene.sender(resolver=hang).post("http://slow.example/", [], b"", timeout=0.1)


async def test_waiting_for_a_connection_counts_against_the_timeout(scene: Scene) -> None:
    arrivals: asyncio.Queue[None] = asyncio.Queue()

    async def hold(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrivals.put_nowait(None)
        await silent(peer, reader, writer)

    peer = await scene.peer(hold)
    sender = scene.sender(connections_per_destination=2)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        holding = [group.create_task(sender.post(peer.url, [], b"", timeout=10)) for _ in range(2)]
        for _ in holding:
            await arrivals.get()
        with pytest.raises(Unreachable, match="no answer within"):
            await sender.post(peer.url, [], b"", timeout=0.1)
        for task in holding:
            task.cancel()
    assert peer.connections == 2


async def test_a_closed_sender_sends_nothing(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    unused, used = scene.sender(), scene.sender()
    await used.post(peer.url, [], b"", timeout=5)
    for sender in (unused, used):
        await sender.aclose()
        with pytest.raises(Unreachable, match="closed"):
            await sender.post(peer.url, [], b"", timeout=5)
    assert len(peer.requests) == 1


# --- the guard ---


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/", "http://2130706433:8080/", "http://[::1]:8080/", "ftp://a/"]
)
async def test_the_text_of_the_url_is_judged_at_dial_as_well(scene: Scene, url: str) -> None:
    with pytest.raises(UrlRefused):
        await scene.sender(EgressPolicy()).post(url, [], b"", timeout=5)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
        ["localhost"],
    ],
)
async def test_a_name_with_any_denied_address_is_not_dialled(
    scene: Scene, addresses: list[str]
) -> None:
    peer = await scene.peer(answering(OK))
    sender = scene.sender(EgressPolicy(), resolver=resolving(addresses))
    with pytest.raises(AddressRefused, match=r"peer\.example"):
        await sender.post(f"http://peer.example:{peer.port}/", [], b"", timeout=5)
    assert peer.connections == 0


async def test_a_refused_address_was_never_reached(scene: Scene) -> None:
    sender = scene.sender(EgressPolicy(), resolver=resolving(["10.0.0.1"]))
    with pytest.raises(Unreachable):
        await sender.post("http://peer.example/", [], b"", timeout=5)


async def test_localhost_is_looked_up_and_judged(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    url = f"http://localhost:{peer.port}/"
    assert (await scene.sender().post(url, [], b"", timeout=5)).status == 200
    with pytest.raises(AddressRefused, match="loopback"):
        await scene.sender(EgressPolicy()).post(url, [], b"", timeout=5)


async def test_a_name_that_changes_its_mind_is_judged_at_every_dial(scene: Scene) -> None:
    peer = await scene.peer(answering(OK, then_close=True))
    sender = scene.sender(resolver=resolving(["127.0.0.1"], ["169.254.169.254"]))
    url = f"http://rebinding.example:{peer.port}/"
    response = await sender.post(url, [], b"", timeout=5)
    assert response.address == f"127.0.0.1:{peer.port}"
    with pytest.raises((AddressRefused, UnknownOutcome)):
        await sender.post(url, [], b"", timeout=5)
    with pytest.raises(AddressRefused, match="link-local"):
        await sender.post(url, [], b"", timeout=5)
    assert peer.connections == 1


async def test_a_connection_goes_to_the_address_that_was_judged(scene: Scene) -> None:
    looked_up: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    peer = await scene.peer(answering(OK))
    sender = scene.sender(resolver=resolve)
    await sender.post(f"http://Peer.Example.:{peer.port}/", [], b"", timeout=5)
    assert len(looked_up) == 1
    assert peer.requests[0].values("host")[0].lower().startswith(b"peer.example")


async def test_the_next_address_is_tried_when_one_does_not_answer(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    sender = scene.sender(resolver=resolving(["127.0.0.2", "::1", "127.0.0.1"]))
    response = await sender.post(f"http://peer.example:{peer.port}/", [], b"", timeout=5)
    assert response.address == f"127.0.0.1:{peer.port}"


async def test_every_socket_is_opened_by_the_guard(scene: Scene) -> None:
    sender = scene.sender(EgressPolicy())
    attempt = _Attempt(sender._checked_target("http://peer.example/"))
    _attempt.set(attempt)
    with pytest.raises(OSError, match="loopback"):
        sender._open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))
    # An attempt that was refused once is not saved by another address.
    with pytest.raises(OSError, match="loopback"):
        sender._open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80)))


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"])
async def test_an_address_is_dialled_in_the_form_that_was_judged(scene: Scene, host: str) -> None:
    peer = await scene.peer(answering(OK))
    response = await scene.sender().post(f"http://{host}:{peer.port}/a%2fb", [], b"", timeout=5)
    assert response.address == f"127.0.0.1:{peer.port}"
    assert peer.requests[0].values("host") == [f"127.0.0.1:{peer.port}".encode()]
    assert peer.requests[0].line == b"POST /a%2fb HTTP/1.1"


async def test_ipv6_addresses_are_dialled_and_reported(scene: Scene) -> None:
    peer = await scene.peer(answering(OK), host="::1")
    response = await scene.sender().post(f"http://[::1]:{peer.port}/", [], b"", timeout=5)
    assert response.address == f"[::1]:{peer.port}"


async def test_a_rule_opens_private_addresses_for_its_host_only(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    policy = EgressPolicy(
        allow=(
            AllowRule("inside.example", insecure=True, private=True),
            AllowRule("*", insecure=True),
        )
    )
    sender = scene.sender(policy, resolver=resolving(["127.0.0.1"]))
    inside = await sender.post(f"http://inside.example:{peer.port}/", [], b"", timeout=5)
    assert inside.status == 200
    with pytest.raises(AddressRefused):
        await sender.post(f"http://outside.example:{peer.port}/", [], b"", timeout=5)


async def test_two_senders_share_nothing(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    url = f"http://hook.example:{peer.port}/"
    strict, first, second = (
        scene.sender(policy, resolver=resolving(["127.0.0.1"]))
        for policy in (EgressPolicy(), PRIVATE, PRIVATE)
    )
    await first.post(url, [], b"", timeout=5)
    # A connection lies open to this very destination, and is no way around the stricter policy.
    with pytest.raises(AddressRefused):
        await strict.post(url, [], b"", timeout=5)
    await second.post(url, [], b"", timeout=5)
    assert peer.connections == 2
    await first.aclose()
    await second.post(url, [], b"", timeout=5)
    assert peer.connections == 2
    with pytest.raises(Unreachable, match="closed"):
        await first.post(url, [], b"", timeout=5)


async def test_destinations_that_a_policy_tells_apart_share_no_connection(scene: Scene) -> None:
    authority = Authority()
    names = [f"{name}.example" for name in ("inside", "outside", "other")]
    peer = await scene.peer(answering(OK))
    encrypted = await scene.peer(answering(OK), tls=authority.server(*names))
    policy = EgressPolicy(
        allow=(
            AllowRule("inside.example", insecure=True, private=True),
            AllowRule("inside.example", port=encrypted.port, private=True),
            AllowRule("outside.example", port=encrypted.port, private=True),
            AllowRule("*", insecure=True),
        )
    )
    sender = scene.sender(policy, resolver=resolving(["127.0.0.1"]), ssl_context=authority.client())
    open_to = [f"http://inside.example:{peer.port}/"]
    open_to += [f"https://{name}:{encrypted.port}/" for name in names[:2]]
    for url in open_to * 2:
        assert (await sender.post(url, [], b"", timeout=5)).status == 200
    assert (peer.connections, encrypted.connections) == (1, 2)
    # The same address, the same port, open connections: another name, or another scheme.
    for url in (
        f"http://outside.example:{peer.port}/",
        f"http://other.example:{peer.port}/",
        f"https://other.example:{encrypted.port}/",
        f"http://outside.example:{encrypted.port}/",
    ):
        with pytest.raises(AddressRefused):
            await sender.post(url, [], b"", timeout=5)
    assert (peer.connections, encrypted.connections) == (1, 2)


URL_TAILS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
AUTHORITIES = st.lists(
    st.sampled_from(["a", "b.example", "8.8.8.8", "0x8.8", "134744072", "[2606:4700::1]", "xn--"])
    | st.sampled_from([".", ":", ":80", ":8080", ":080", "-", "_", "%", "@", ",", ";", "$", "!"]),
    min_size=1,
    max_size=4,
).map("".join)
# An independent reader of URLs: what it finds as host and port, None where it reads no URL.
Reader = Callable[[str], tuple[str, int | None] | None]


def _by_httptools(raw: str) -> tuple[str, int | None] | None:
    try:
        url = httptools.parse_url(raw.encode())
    except httptools.HttpParserInvalidURLError:
        return None
    return (url.host or b"").decode(), url.port


def _by_urllib(raw: str) -> tuple[str, int | None] | None:
    try:
        url = urlsplit(raw)
        return url.hostname or "", url.port
    except ValueError:
        return None


def _by_httpx(raw: str) -> tuple[str, int | None] | None:
    try:
        url = httpx.URL(raw)
    except httpx.InvalidURL:
        return None
    return url.host, url.port


READERS: list[Reader] = [_by_httptools, _by_urllib, _by_httpx]


@given(
    st.sampled_from(["http", "https", "HTTP"]),
    AUTHORITIES | URL_TAILS,
    st.sampled_from(["", "/", "?"]),
    URL_TAILS,
)
@example("http", "0x8.8", "", ":80?")
def test_a_url_means_the_same_to_the_guard_and_to_every_other_reader(
    scheme: str, authority: str, separator: str, tail: str
) -> None:
    sender = AiohttpSender(EgressPolicy())
    raw = f"{scheme}://{authority}{separator}{tail}"
    try:
        destination = check_callback_url(raw, EgressPolicy())
    except UrlRefused:
        with pytest.raises(UrlRefused):
            sender._checked_target(raw)
        return
    target = sender._checked_target(raw)
    assert target.url.scheme == destination.scheme
    assert target.url.port == destination.port
    assert str(target.url.raw_host).lower().removesuffix(".") == destination.host
    for read in READERS:
        if (found := read(raw)) is None:
            continue
        host, port = found
        written = f"[{host}]" if ":" in host else host
        suffix = "" if port is None else f":{port}"
        again = check_callback_url(f"{destination.scheme}://{written}{suffix}/", EgressPolicy())
        assert again == destination, read


# A value is the bytes of some UTF-8, one character each, as an ASGI server hands them over.
HEADER_NAMES = (
    st.sampled_from(["Token", "X-A", "x-a", "Cookie", "Nexus-Link", "Webhook-Id", "Keep-Alive"])
    | st.sampled_from(["Host", "content-length", "Content_Length", "Transfer-Encoding", "TE"])
    | st.sampled_from(["Connection", "Expect", "Upgrade", "Proxy-Authorization", "Trailer"])
    | st.text(max_size=8)
)
HEADER_VALUES = st.text(max_size=12).map(lambda text: text.encode().decode("latin-1")) | st.text(
    st.sampled_from("a: \r\n\t\x00\x0b\x85\xa0\xff"), max_size=6
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(HEADER_NAMES, HEADER_VALUES, max_size=4), st.binary(max_size=20))
def test_no_header_of_a_caller_changes_the_framing(
    runner: asyncio.Runner, headers: dict[str, str], body: bytes
) -> None:
    try:
        check_callback_headers(headers)
    except HeaderRefused:
        return

    async def post() -> tuple[Peer, int]:
        async with Scene.open() as scene:
            peer = await scene.peer(answering(OK))
            sender = scene.sender()
            pairs = list(headers.items())
            statuses = [(await sender.post(peer.url, pairs, body, timeout=5)).status for _ in "ab"]
            return peer, statuses.count(200)

    peer, answered = runner.run(post())
    # Both requests, one behind the other on one connection, were read as they were meant.
    assert (answered, peer.connections, len(peer.requests)) == (2, 1, 2)
    for request in peer.requests:
        assert request.body == body
        assert request.values("content-length") == [str(len(body)).encode()]
        assert request.values("transfer-encoding") == []
        assert request.values("host") == [f"127.0.0.1:{peer.port}".encode()]
        for name in headers:
            sent = [v.encode("latin-1") for n, v in headers.items() if n.lower() == name.lower()]
            assert request.values(name) == sent


# --- TLS ---


async def test_the_certificate_is_checked_against_the_host_name(scene: Scene) -> None:
    authority = Authority()
    peer = await scene.peer(answering(OK), tls=authority.server("right.example"))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]), ssl_context=authority.client())
    response = await sender.post(f"https://right.example:{peer.port}/", [], b"x", timeout=5)
    assert response.status == 200
    assert authority.asked_for == ["right.example"]
    # The pooled connection to the same address is not for another name.
    with pytest.raises(Unreachable, match="certificate"):
        await sender.post(f"https://wrong.example:{peer.port}/", [], b"x", timeout=5)
    assert authority.asked_for == ["right.example", "wrong.example"]
    assert len(peer.requests) == 1


# --- what this process lacks ---


async def test_a_process_out_of_files_has_not_sent(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    sender = scene.sender()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as next_one:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno() + 1, hard))
        try:
            with pytest.raises(NotSent, match="too many files open"):
                await sender.post(f"http://127.0.0.1:{peer.port}/", [], b"", timeout=5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    response = await sender.post(f"http://127.0.0.1:{peer.port}/", [], b"", timeout=5)
    assert response.status == 200
