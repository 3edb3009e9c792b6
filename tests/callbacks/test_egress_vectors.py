"""Every row of the table of egress vectors, through the real sender."""

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from callbacks.egress import check_callback_url
from callbacks.errors import AddressRefused, UrlRefused
from tests.callbacks.egress_vectors import (
    VECTORS,
    Dialled,
    RefusedAtDial,
    RefusedAtStart,
    Vector,
)
from tests.callbacks.peers import OK, Authority, Peer, Scene, answering, dials

pytestmark = pytest.mark.anyio


@cache
def authority() -> Authority:
    return Authority()


@cache
def trust() -> ssl.SSLContext:
    return authority().client()


@cache
def certificate() -> ssl.SSLContext:
    return authority().server("*.pool.example", "127.0.0.1", "::1")


@dataclass
class Listeners:
    """The same peer, listening without and with TLS, for IPv4 and for IPv6."""

    peer: Peer
    port: int
    tls: int

    def fill_in(self, url: str) -> str:
        return url.replace("{port}", str(self.port)).replace("{tls}", str(self.tls))


@pytest.fixture
async def listeners(scene: Scene) -> Listeners:
    peer = Peer()
    ports = []
    for tls in (None, certificate()):
        port, sockets = _sockets_of_one_port()
        ports.append(port)
        for listener in sockets:
            await scene.listen(peer, answering(OK), listener, tls=tls)
    return Listeners(peer, *ports)


def _sockets_of_one_port() -> tuple[int, list[socket.socket]]:
    """Listen on both loopback addresses."""
    for _ in range(20):
        first = socket.create_server(("127.0.0.1", 0))
        port = first.getsockname()[1]
        try:
            return port, [first, socket.create_server(("::1", port), family=socket.AF_INET6)]
        except OSError:  # somebody else has this port there
            first.close()
    pytest.fail("no port is free on both addresses")


@pytest.mark.parametrize("vector", VECTORS, ids=[ascii(v.url)[1:90] for v in VECTORS])
async def test_a_vector_is_refused_or_pinned(
    vector: Vector, scene: Scene, listeners: Listeners
) -> None:
    looked_up = 0

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        nonlocal looked_up
        looked_up += 1
        return vector.answers[min(looked_up, len(vector.answers)) - 1]

    sender = scene.sender(vector.policy, resolver=resolve, ssl_context=trust())
    url = listeners.fill_in(vector.url)
    authority().asked_for.clear()
    with dials().noted() as connected:
        match vector.outcome:
            case RefusedAtStart(says):
                with pytest.raises(UrlRefused, match=says):
                    check_callback_url(url, vector.policy)
                with pytest.raises(UrlRefused, match=says) as refused:
                    await sender.post(url, [], b"", timeout=5)
                assert not isinstance(refused.value, AddressRefused)
                assert looked_up == 0
                assert connected == []
            case RefusedAtDial(says):
                check_callback_url(url, vector.policy)
                with pytest.raises(AddressRefused, match=says):
                    await sender.post(url, [], b"", timeout=5)
                assert looked_up == 1
                assert connected == []
            case Dialled(address, host, server_name):
                check_callback_url(url, vector.policy)
                response = await sender.post(url, [], b"x", timeout=5)
                port = listeners.tls if url.startswith("https") else listeners.port
                assert connected == [address]
                assert response.address == (
                    f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
                )
                assert looked_up <= 1
                (request,) = listeners.peer.requests
                assert request.values("host") == [f"{host}:{port}".encode()]
                assert authority().asked_for == ([server_name] if port == listeners.tls else [])


def test_the_table_is_as_long_as_it_has_to_be() -> None:
    assert len({(v.url, v.answers, v.policy) for v in VECTORS}) == len(VECTORS)
    for outcome in (RefusedAtStart, RefusedAtDial, Dialled):
        assert sum(isinstance(v.outcome, outcome) for v in VECTORS) >= 30


def test_a_connection_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, dials().noted() as connected:
        socket.create_connection(listener.getsockname()).close()
    assert connected == ["127.0.0.1"]
