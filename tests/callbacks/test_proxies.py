"""Callbacks through the proxies of the environment, with a real proxy on loopback."""

import asyncio
import traceback
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from callbacks.egress import AllowRule, Destination, EgressPolicy
from callbacks.errors import AddressRefused, UrlRefused
from callbacks.proxies import Proxies, read_proxies
from clients.errors import UnknownOutcome, Unreachable
from tests.callbacks.peers import OK, Authority, Peer, Scene, answering, silent, streaming

pytestmark = pytest.mark.anyio

PUBLIC = EgressPolicy()


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class ForwardProxy:
    """A little proxy that knows where each name leads."""

    routes: dict[str, int] = field(default_factory=dict)
    credentials: str | None = None
    # The first line of every request, and who it said it was.
    lines: list[bytes] = field(default_factory=list)
    authorizations: list[list[bytes]] = field(default_factory=list)

    async def behave(
        self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await peer.read(reader)
            self.lines.append(request.line)
            self.authorizations.append(request.values("proxy-authorization"))
            if self.credentials is not None and not self._knows(self.authorizations[-1]):
                writer.write(b"HTTP/1.1 407 Who Are You\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                continue
            method, target, _ = request.line.split(b" ")
            authority = target.decode().removeprefix("http://").partition("/")[0]
            port = self.routes.get(authority)
            if port is None:
                writer.write(b"HTTP/1.1 502 Nowhere\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                continue
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", port)
            if method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                onward.write(request.head + b"\r\n\r\n" + request.body)
            both = [_copy(reader, onward), _copy(onward_reader, writer)]
            try:
                await asyncio.gather(*both)
            finally:
                onward.transport.abort()
            return

    def _knows(self, authorizations: list[bytes]) -> bool:
        assert self.credentials is not None
        return authorizations == [f"Basic {b64encode(self.credentials.encode()).decode()}".encode()]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def no_resolver(host: str, _port: int) -> Sequence[str]:
    raise AssertionError(f"{host} was looked up")


def through(port: int, **environment: str) -> Proxies:
    url = f"http://127.0.0.1:{port}"
    return read_proxies({"HTTP_PROXY": url, "HTTPS_PROXY": url, **environment})


# --- calling ---


async def test_an_http_callback_goes_through_the_proxy(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    little = ForwardProxy(routes={"hook.example": peer.port})
    proxy = await scene.peer(little.behave)
    sender = scene.sender(PUBLIC, proxies=through(proxy.port), resolver=no_resolver)
    url = "http://hook.example/a%2fb?x=%7e"
    response = await sender.post(url, [("Token", "t")], b"body", timeout=5)
    assert response.status == 200
    # The proxy is loopback and is dialled: an operator named it.
    assert response.address == f"127.0.0.1:{proxy.port}"
    assert little.lines == [f"POST {url} HTTP/1.1".encode()]
    assert little.authorizations == [[]]
    (request,) = peer.requests
    assert request.values("host") == [b"hook.example"]
    assert request.values("token") == [b"t"]
    assert request.body == b"body"


@pytest.mark.parametrize("host", ["hook.example", "hook.example."])
async def test_an_https_callback_goes_through_a_tunnel(scene: Scene, host: str) -> None:
    authority = Authority()
    peer = await scene.peer(answering(OK), tls=authority.server("hook.example"))
    little = ForwardProxy(
        routes={"hook.example:443": peer.port, "hook.example.:443": peer.port}, credentials="u:p"
    )
    proxy = await scene.peer(little.behave)
    proxies = read_proxies({"HTTPS_PROXY": f"http://u:p@127.0.0.1:{proxy.port}"})
    sender = scene.sender(
        PUBLIC, proxies=proxies, resolver=no_resolver, ssl_context=authority.client()
    )
    for _ in range(3):
        assert (await sender.post(f"https://{host}/x", [], b"x", timeout=5)).status == 200
    assert authority.asked_for == ["hook.example"]
    assert len(little.lines) == 1  # the tunnel is kept
    assert little.lines[0].startswith(b"CONNECT hook.example")
    # The proxy's credentials are for the proxy.
    assert [request.values("proxy-authorization") for request in peer.requests] == [[]] * 3


async def test_the_certificate_behind_a_tunnel_is_the_hosts(scene: Scene) -> None:
    authority = Authority()
    peer = await scene.peer(answering(OK), tls=authority.server("other.example"))
    proxy = await scene.peer(ForwardProxy(routes={"hook.example:443": peer.port}).behave)
    sender = scene.sender(
        PUBLIC,
        proxies=through(proxy.port),
        resolver=no_resolver,
        ssl_context=authority.client(),
    )
    with pytest.raises(Unreachable, match="certificate"):
        await sender.post("https://hook.example/", [], b"x", timeout=5)
    assert peer.requests == []


async def test_a_proxy_is_looked_up_by_its_name(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    proxy = await scene.peer(ForwardProxy(routes={"hook.example": peer.port}).behave)
    looked_up: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    proxies = read_proxies({"http_proxy": f"proxy.internal:{proxy.port}"})
    sender = scene.sender(PUBLIC, proxies=proxies, resolver=resolve)
    assert (await sender.post("http://hook.example/", [], b"x", timeout=5)).status == 200
    assert looked_up == ["proxy.internal"]


async def test_a_proxy_over_tls(scene: Scene) -> None:
    authority = Authority()
    inner = await scene.peer(answering(OK), tls=authority.server("hook.example"))
    plain = await scene.peer(answering(OK))
    little = ForwardProxy(routes={"hook.example:443": inner.port, "hook.example": plain.port})
    proxy = await scene.peer(little.behave, tls=authority.server("127.0.0.1"))
    proxies = read_proxies({"ALL_PROXY": f"https://127.0.0.1:{proxy.port}"})
    sender = scene.sender(
        PUBLIC, proxies=proxies, resolver=no_resolver, ssl_context=authority.client()
    )
    for scheme in ("http", "https"):
        response = await sender.post(f"{scheme}://hook.example/", [], b"x", timeout=5)
        assert response.status == 200
    assert len(little.lines) == 2


# --- the guard ---


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://2852039166/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "http://hook.example:22/",
        "http://user@hook.example/",
    ],
)
async def test_the_text_of_a_url_is_judged_all_the_same(scene: Scene, url: str) -> None:
    proxy = await scene.peer(ForwardProxy().behave)
    with pytest.raises(UrlRefused):
        await scene.sender(PUBLIC, proxies=through(proxy.port)).post(url, [], b"", timeout=5)
    assert proxy.connections == 0


async def test_allow_rules_hold_through_a_proxy(scene: Scene) -> None:
    peer = await scene.peer(answering(OK))
    proxy = await scene.peer(ForwardProxy(routes={"hook.example": peer.port}).behave)
    policy = EgressPolicy(allow=(AllowRule("hook.example", insecure=True),))
    sender = scene.sender(policy, proxies=through(proxy.port), resolver=no_resolver)
    assert (await sender.post("http://hook.example/", [], b"x", timeout=5)).status == 200
    with pytest.raises(UrlRefused, match="not an allowed destination"):
        await sender.post("http://other.example/", [], b"x", timeout=5)


@pytest.mark.parametrize(
    "no_proxy", ["inside.example", "*", ".example", "x, inside.example:{port}"]
)
async def test_what_goes_direct_is_judged_in_full(scene: Scene, no_proxy: str) -> None:
    peer = await scene.peer(answering(OK))
    proxy = await scene.peer(ForwardProxy().behave)
    proxies = through(proxy.port, NO_PROXY=no_proxy.format(port=peer.port))

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    url = f"http://inside.example:{peer.port}/"
    with pytest.raises(AddressRefused, match="loopback"):
        await scene.sender(PUBLIC, proxies=proxies, resolver=resolve).post(url, [], b"", timeout=5)
    allowed = EgressPolicy(allow=(AllowRule("inside.example", insecure=True, private=True),))
    sender = scene.sender(allowed, proxies=proxies, resolver=resolve)
    response = await sender.post(url, [], b"", timeout=5)
    assert response.address == f"127.0.0.1:{peer.port}"
    assert peer.requests[0].line == b"POST / HTTP/1.1"
    assert proxy.connections == 0


# --- credentials ---


async def test_credentials_are_sent_to_the_proxy_and_shown_to_nobody(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await scene.peer(answering(OK))
    little = ForwardProxy(
        routes={"hook.example": peer.port}, credentials="agent 7:s3cret@/:\N{SNOWMAN}"
    )
    proxy = await scene.peer(little.behave)

    def proxies(password: str) -> Proxies:
        url = f"http://agent%207:{password}@127.0.0.1:{proxy.port}/"
        return read_proxies({"ALL_PROXY": url})

    right, wrong = proxies("s3cret%40%2F%3A%E2%98%83"), proxies("s3crot")
    sender = scene.sender(PUBLIC, proxies=right, resolver=no_resolver)
    assert (await sender.post("http://hook.example/", [], b"x", timeout=5)).status == 200

    sender = scene.sender(PUBLIC, proxies=wrong, resolver=no_resolver)
    assert (await sender.post("http://hook.example/", [], b"x", timeout=5)).status == 407
    with pytest.raises(Unreachable, match="the proxy answered 407") as caught:
        await sender.post("https://hook.example/?key=hidden", [], b"x", timeout=5)

    told = "".join(traceback.format_exception(caught.value))
    told += f"{right} {right.urls} {right.http!r} {caplog.text} {caught.value!r}"
    sent = [b64decode(values[0][6:]).decode() for values in little.authorizations]
    assert sent == ["agent 7:s3cret@/:\N{SNOWMAN}", "agent 7:s3crot", "agent 7:s3crot"]
    for secret in ("s3cret", "s3crot", "agent", "Basic"):
        assert secret not in told
    assert "hidden" not in str(caught.value)
    assert right.urls == [f"http://127.0.0.1:{proxy.port}"]


# --- a proxy that fails ---


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (answering(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n"), "the proxy answered 502"),
        (answering(b"HTTP/1.1 302 No\r\nLocation: http://a/\r\n\r\n"), "the proxy answered 302"),
        (answering(b"", then_close=True), "not reached"),
        (answering(b"SSH-2.0\r\n\r\n"), "malformed answer"),
        (answering(b"HTTP/1.1 200 OK\r\n\r\nno TLS, but text"), "no answer within"),
        (streaming(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), "more than 524288 bytes"),
        (silent, "no answer within"),
    ],
)
async def test_a_tunnel_that_cannot_be_had_is_unreachable(
    scene: Scene, behaviour: Callable[..., Awaitable[None]], says: str
) -> None:
    proxy = await scene.peer(behaviour)
    sender = scene.sender(PUBLIC, proxies=through(proxy.port), resolver=no_resolver)
    timeout = 0.3 if says == "no answer within" else 10
    with pytest.raises(Unreachable, match=says):
        await sender.post("https://hook.example/", [], b"x", timeout=timeout)


async def test_a_proxy_that_hangs_with_an_http_request_has_an_unknown_outcome(
    scene: Scene,
) -> None:
    proxy = await scene.peer(silent)
    sender = scene.sender(PUBLIC, proxies=through(proxy.port), resolver=no_resolver)
    with pytest.raises(UnknownOutcome, match="no answer within"):
        await sender.post("http://hook.example/", [], b"x", timeout=0.3)


async def test_a_proxy_that_is_gone_is_unreachable(scene: Scene) -> None:
    sender = scene.sender(PUBLIC, proxies=through(1), resolver=no_resolver)
    for scheme in ("http", "https"):
        with pytest.raises(Unreachable, match="not reached"):
            await sender.post(f"{scheme}://hook.example/", [], b"x", timeout=5)


# --- reading the environment ---


def destination(url: str) -> Destination:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    return Destination(scheme=scheme, host=host.strip("[]"), port=int(port))


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://p:1"}, "http://p:1", None),
        ({"HTTPS_PROXY": "http://p:1"}, None, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://p:1", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "HTTP_PROXY": "http://q:1"}, "http://q:1", "http://p:1"),
        ({"http_proxy": "http://p:1", "HTTP_PROXY": "http://q:1"}, "http://p:1", None),
        ({"http_proxy": "", "HTTP_PROXY": "http://q:1"}, None, None),
        ({"HTTP_PROXY": "  "}, None, None),
        ({"HTTP_PROXY": "p:3128"}, "http://p:3128", None),
        ({"HTTP_PROXY": "p"}, "http://p", None),
        ({"HTTP_PROXY": "https://p/"}, "https://p", None),
        ({"HTTP_PROXY": "http://u:p@p:1/path?x"}, "http://p:1", None),
        ({"HTTP_PROXY": "http://[::1]:1"}, "http://[::1]:1", None),
    ],
)
def test_which_proxy_is_used(
    environment: dict[str, str], http: str | None, https: str | None
) -> None:
    proxies = read_proxies(environment)
    for scheme, expected in (("http", http), ("https", https)):
        proxy = proxies.proxy_for(destination(f"{scheme}://hook.example:80"))
        assert (None if proxy is None else str(proxy.url)) == expected


@pytest.mark.parametrize(
    "value",
    ["socks5://s3cret@p:1", "http://s3cret:x@", "http://s3cret@p:99999", "http://p:s3cret", "//"],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_value(value: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY") as caught:
        read_proxies({"HTTPS_PROXY": value})
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "http://hook.example:80", False),
        ("*", "http://hook.example:80", True),
        (".", "http://hook.example:80", False),
        (",,", "http://hook.example:80", False),
        ("hook.example", "http://hook.example:80", True),
        ("HOOK.example", "http://hook.example:80", True),
        ("hook.example.", "http://hook.example:80", True),
        ("a,hook.example", "https://hook.example:8443", True),
        ("a hook.example", "https://hook.example:8443", True),
        ("example", "http://hook.example:80", True),
        (".example", "http://hook.example:80", True),
        ("*.example", "http://hook.example:80", True),
        ("ook.example", "http://hook.example:80", False),
        ("x.hook.example", "http://hook.example:80", False),
        ("hook.example:80", "http://hook.example:80", True),
        ("hook.example:81", "http://hook.example:80", False),
        ("8.8.8.8", "http://8.8.8.8:80", True),
        ("8.8.8.8:81", "http://8.8.8.8:80", False),
        ("8.0.0.0/8", "http://8.8.8.8:80", True),
        ("9.0.0.0/8", "http://8.8.8.8:80", False),
        ("0.0.0.0/0", "http://hook.example:80", False),
        ("2606:4700::/32", "http://[2606:4700::1]:80", True),
        ("[2606:4700::1]:80", "http://[2606:4700::1]:80", True),
        ("[2606:4700::1]:81", "http://[2606:4700::1]:80", False),
        ("a:b:c", "http://hook.example:80", False),
    ],
)
def test_what_goes_direct(no_proxy: str, url: str, direct: bool) -> None:
    proxies = read_proxies({"ALL_PROXY": "http://p:1", "NO_PROXY": no_proxy})
    assert (proxies.proxy_for(destination(url)) is None) is direct
