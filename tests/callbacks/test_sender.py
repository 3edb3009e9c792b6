import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from callbacks.egress import AllowRule, EgressPolicy, check_callback_url
from callbacks.errors import AddressRefused, HeaderRefused, UrlRefused
from callbacks.sender import AiohttpSender, _Attempt, _attempt
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import Sender

pytestmark = pytest.mark.anyio

PRIVATE = EgressPolicy(allow_private=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class Request:
    """One request as its bytes came in."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    def values(self, name: str) -> list[bytes]:
        fields = [line.partition(b": ") for line in self.head.split(b"\r\n")[1:]]
        return [value for key, _, value in fields if key.lower() == name.lower().encode()]


Behaviour = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """A server that behaves as it is told, byte by byte."""

    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cb"

    async def read(self, reader: asyncio.StreamReader) -> Request:
        head = await reader.readuntil(b"\r\n\r\n")
        request = Request(head[:-4], b"")
        request.body = await reader.readexactly(
            int((request.values("content-length") or [b"0"])[0])
        )
        self.requests.append(request)
        return request


class Scene:
    """Starts peers and senders, and ends them with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def peer(
        self, behaviour: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> Peer:
        peer = Peer()
        serving: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer.connections += 1
            serving.add(task := asyncio.ensure_future(_until_gone(peer, behaviour, reader, writer)))
            await asyncio.wait([task])

        server = await asyncio.start_server(serve, host, 0, ssl=tls)
        peer.port = server.sockets[0].getsockname()[1]

        async def end() -> None:
            server.close()
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)

        self._stack.push_async_callback(end)
        return peer

    def sender(self, policy: EgressPolicy = PRIVATE, **options: Any) -> AiohttpSender:
        sender = AiohttpSender(policy, **options)
        self._stack.push_async_callback(sender.aclose)
        return sender


async def _until_gone(
    peer: Peer,
    behaviour: Behaviour,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        await behaviour(peer, reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        pass  # the sender hung up, which most of these tests want
    finally:
        writer.transport.abort()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(stack)


def answering(data: bytes, *, then_close: bool = False) -> Behaviour:
    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await peer.read(reader)
            writer.write(data)
            await writer.drain()
            if then_close:
                writer.close()
                await writer.wait_closed()
                return

    return behave


async def silent(peer: Peer, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await peer.read(reader)
    await reader.read()


def streaming(head: bytes, piece: bytes, *, pause_seconds: float = 0) -> Behaviour:
    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read(reader)
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return behave


def resolving(*answers: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """Resolve to each of the answers in turn, to the last one ever after."""
    remaining = list(answers)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return resolve


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


async def test_redirects_are_answers(scene: Scene) -> None:
    elsewhere = await scene.peer(answering(OK))
    peer = await scene.peer(
        answering(
            f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}\r\nContent-Length: 0\r\n\r\n".encode()
        )
    )
    response = await scene.sender().post(peer.url, [], b"x", timeout=5)
    assert response.status == 302
    assert elsewhere.connections == 0


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


async def test_an_answer_before_the_end_of_the_request_spoils_the_connection(
    scene: Scene,
) -> None:
    async def hasty(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.requests.append(Request(await reader.readuntil(b"\r\n\r\n"), b""))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        while await reader.read(65536):
            pass

    peer = await scene.peer(hasty)
    sender = scene.sender()
    for _ in range(2):
        response = await sender.post(peer.url, [], b"x" * 20_000_000, timeout=5)
        assert response.status == 400
    # The second request did not follow the half of the first.
    assert peer.connections == 2


async def test_a_compressed_body_is_not_unpacked(scene: Scene) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    peer = await scene.peer(
        streaming(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + bomb, bomb
        )
    )
    response = await scene.sender().post(peer.url, [], b"", timeout=5)
    assert response.body == bomb[:4096]


async def test_a_status_counts_when_the_body_never_ends(scene: Scene) -> None:
    peer = await scene.peer(
        streaming(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", pause_seconds=0.02)
    )
    response = await scene.sender().post(peer.url, [], b"", timeout=0.3)
    assert response.status == 200
    assert set(response.body) == {ord("x")}


async def test_a_status_counts_when_the_body_breaks_off(scene: Scene) -> None:
    peer = await scene.peer(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", then_close=True)
    )
    response = await scene.sender().post(peer.url, [], b"", timeout=5)
    assert (response.status, response.body) == (200, b"half")


# --- no answer ---


async def test_a_peer_that_drips_its_headers_runs_into_the_timeout(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"HTTP/1.1 200 OK\r\nX: ", b"y", pause_seconds=0.02))
    with pytest.raises(UnknownOutcome, match=r"no answer within 0\.3 s"):
        await scene.sender().post(peer.url, [], b"", timeout=0.3)


async def test_a_peer_that_never_answers_runs_into_the_timeout(scene: Scene) -> None:
    peer = await scene.peer(silent)
    with pytest.raises(UnknownOutcome, match=f"127.0.0.1:{peer.port}"):
        await scene.sender().post(peer.url, [], b"", timeout=0.2)


async def test_a_peer_that_takes_no_body_runs_into_the_timeout(scene: Scene) -> None:
    async def deaf(_: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.get_running_loop().create_future()

    peer = await scene.peer(deaf)
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x" * 20_000_000, timeout=0.3)


async def test_endless_interim_answers_run_into_the_timeout(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause_seconds=0.02))
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"", timeout=0.3)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_reset_after_the_request_has_an_unknown_outcome(scene: Scene) -> None:
    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read(reader)
        _reset(writer)

    peer = await scene.peer(behave)
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x", timeout=5)
    assert len(peer.requests) == 1  # and it was not sent again


async def test_a_reset_of_a_new_connection_has_an_unknown_outcome(scene: Scene) -> None:
    async def behave(_: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _reset(writer)

    peer = await scene.peer(behave)
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x", timeout=5)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"",
    ],
)
async def test_an_answer_that_is_not_http_has_an_unknown_outcome(scene: Scene, data: bytes) -> None:
    peer = await scene.peer(answering(data, then_close=True))
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x", timeout=5)


async def test_headers_without_end_are_not_collected(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"))
    with pytest.raises(UnknownOutcome, match=r"^(?!.*no answer within)"):
        await scene.sender().post(peer.url, [], b"x", timeout=20)


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


URL_TAILS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(st.sampled_from(["http://", "https://", "HTTP://"]), URL_TAILS, URL_TAILS)
@example("http://", "0x8.8", ":80?")
def test_a_url_means_the_same_to_the_guard_and_to_the_client(
    scheme: str, authority: str, tail: str
) -> None:
    sender = AiohttpSender(EgressPolicy())
    for raw in (scheme + authority + tail, f"{scheme}a.example/{tail}", f"{scheme}8.8/{tail}"):
        try:
            destination = check_callback_url(raw, EgressPolicy())
        except UrlRefused:
            continue
        target = sender._checked_target(raw)
        assert target.url.port == destination.port
        assert str(target.url.raw_host).lower().removesuffix(".") == destination.host


# --- TLS ---


@dataclass
class Authority:
    """A certificate authority of the test's own, and what was asked of its server."""

    ca: trustme.CA = field(default_factory=trustme.CA)
    asked_for: list[str | None] = field(default_factory=list)

    def server(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(name).configure_cert(context)

        def note(_socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            self.asked_for.append(name)

        context.sni_callback = note
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


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


async def test_an_unknown_authority_is_not_trusted(scene: Scene) -> None:
    peer = await scene.peer(answering(OK), tls=Authority().server("peer.example"))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable, match="certificate"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=5)
    assert peer.requests == []


async def test_a_handshake_that_hangs_is_unreachable(scene: Scene) -> None:
    async def mute(_: Peer, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    peer = await scene.peer(mute)
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable, match="no answer within"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=0.3)


async def test_plain_http_on_a_tls_port_is_unreachable(scene: Scene) -> None:
    async def plain(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read()

    peer = await scene.peer(plain)
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=5)
