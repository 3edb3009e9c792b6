"""Receivers that mean harm, or are broken: none of them holds the sender up or misleads it."""

import asyncio
import gzip
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.connections import ANSWER_BYTES, BoundedProtocol
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from tests.callbacks.peers import (
    OK,
    Authority,
    Behaviour,
    Peer,
    Request,
    Scene,
    answering,
    reset,
    resolving,
    silent,
    streaming,
)

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


# --- floods, at full speed ---

INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
PIECE_BYTES = 32 * 1024


def _filling(piece: bytes) -> bytes:
    return piece * (PIECE_BYTES // len(piece))


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"", INTERIM, id="103"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="100"),
        pytest.param(b"", INTERIM[:-2] + b"Link: <a>\r\n" * 100 + b"\r\n", id="103-with-headers"),
        pytest.param(b"", b"\r\n", id="blank-lines"),
        pytest.param(b"HTTP/1.1 200 ", b"x", id="reason"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x", id="header-value"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"x", id="header-name"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: y", b"\r\n y", id="folded-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"Set-Cookie: a=b\r\n", id="cookies"),
        pytest.param(b"", b"\x00", id="zeros"),
        pytest.param(CHUNKED + b"0\r\n", b"X: y\r\n", id="trailers"),
    ],
)
async def test_a_flood_in_place_of_an_answer_ends_long_before_the_deadline(
    scene: Scene, head: bytes, piece: bytes
) -> None:
    peer = await scene.peer(streaming(head, _filling(piece)))
    with pytest.raises(UnknownOutcome, match=r"more than 524288 bytes|malformed answer"):
        async with asyncio.timeout(20):
            await scene.sender().post(peer.url, [], b"x", timeout=60)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(CHUNKED + b"5;a=", b"x", id="chunk-extension"),
        pytest.param(CHUNKED, b"0", id="chunk-size"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", id="tiny-chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x", id="body-without-end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", b"x", id="length"),
        pytest.param(OK, b"x", id="more-than-the-length"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", b"x", id="upgrade"),
    ],
)
async def test_a_flood_behind_a_status_does_not_hide_it(
    scene: Scene, head: bytes, piece: bytes
) -> None:
    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read(reader)
        writer.write(head)
        await writer.drain()
        await released.wait()
        while True:
            writer.write(_filling(piece))
            await writer.drain()
            await asyncio.sleep(0)

    released = asyncio.Event()
    peer = await scene.peer(behave)
    async with asyncio.timeout(20):
        posting = asyncio.ensure_future(scene.sender().post(peer.url, [], b"x", timeout=60))
        await peer.asked.wait()
        released.set()
        response = await posting
    assert response.status == (101 if b" 101 " in head else 200)
    assert len(response.body) <= 4096


async def test_a_flood_takes_no_memory(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"", _filling(INTERIM)))
    sender = scene.sender()
    tracemalloc.start()
    try:
        with pytest.raises(UnknownOutcome):
            await sender.post(peer.url, [], b"x", timeout=60)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * ANSWER_BYTES


async def test_the_largest_answer_that_is_read_is_no_flood(scene: Scene) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 500) for n in range(100))
    peer = await scene.peer(
        answering(INTERIM * 50 + head + b"Content-Length: 3000000\r\n\r\n" + b"z" * 3_000_000)
    )
    response = await scene.sender().post(peer.url, [], b"x", timeout=20)
    assert response.status == 200
    assert response.headers["x-99"] == "y" * 500
    assert response.body == b"z" * 4096


async def test_every_connection_is_bounded(scene: Scene) -> None:
    # Where aiohttp makes its connections some other way than before, nothing above need fail.
    authority = Authority()
    plain = await scene.peer(answering(OK))
    encrypted = await scene.peer(answering(OK), tls=authority.server("peer.example"))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]), ssl_context=authority.client())
    await sender.post(plain.url, [], b"", timeout=5)
    await sender.post(f"https://peer.example:{encrypted.port}/", [], b"", timeout=5)
    assert sender._session is not None
    pool: Any = sender._session.connector
    protocols = [type(protocol) for kept in pool._conns.values() for protocol, _ in kept]
    assert protocols == [BoundedProtocol] * 2


# --- drips and silence ---


async def test_a_peer_that_drips_its_headers_runs_into_the_timeout(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"HTTP/1.1 200 OK\r\nX: ", b"y", pause_seconds=0.02))
    with pytest.raises(UnknownOutcome, match=r"no answer within 0\.3 s"):
        await scene.sender().post(peer.url, [], b"", timeout=0.3)


async def test_interim_answers_that_drip_run_into_the_timeout(scene: Scene) -> None:
    peer = await scene.peer(streaming(b"", INTERIM, pause_seconds=0.02))
    with pytest.raises(UnknownOutcome, match="no answer within"):
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


async def test_a_status_counts_when_the_body_never_ends(scene: Scene) -> None:
    peer = await scene.peer(
        streaming(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", pause_seconds=0.02)
    )
    response = await scene.sender().post(peer.url, [], b"", timeout=0.3)
    assert response.status == 200
    assert set(response.body) == {ord("x")}


async def test_a_compressed_body_is_not_unpacked(scene: Scene) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    peer = await scene.peer(
        streaming(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + bomb, bomb
        )
    )
    response = await scene.sender().post(peer.url, [], b"", timeout=5)
    assert response.body == bomb[:4096]


# --- resets ---


def resetting(after: bytes, *, read: bool = True) -> Behaviour:
    """Reset the connection behind a part of an answer."""

    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if read:
            await peer.read(reader)
        writer.write(after)
        await writer.drain()
        reset(writer)

    return behave


@pytest.mark.parametrize(
    "after",
    [
        b"",
        b"HTTP/1",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        INTERIM,
        INTERIM + b"HTTP/1.1 200",
    ],
)
async def test_a_reset_before_the_status_has_an_unknown_outcome(scene: Scene, after: bytes) -> None:
    peer = await scene.peer(resetting(after))
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x", timeout=5)
    assert len(peer.requests) == 1  # and it was not sent again


async def test_a_reset_of_a_new_connection_has_an_unknown_outcome(scene: Scene) -> None:
    peer = await scene.peer(resetting(b"", read=False))
    with pytest.raises(UnknownOutcome):
        await scene.sender().post(peer.url, [], b"x", timeout=5)


async def test_a_reset_amid_a_long_request_has_an_unknown_outcome(scene: Scene) -> None:
    async def behave(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(100_000)
        reset(writer)

    peer = await scene.peer(behave)
    url = f"{peer.url}?key=secret"
    with pytest.raises(UnknownOutcome) as caught:
        await scene.sender().post(url, [], b"x" * 20_000_000, timeout=5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("length", [b"Content-Length: 99", b"Transfer-Encoding: chunked"])
async def test_a_status_counts_when_the_body_breaks_off(scene: Scene, length: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n"
    body = b"half" if b"99" in length else b"8\r\nhalf"
    peer = await scene.peer(answering(head + body, then_close=True))
    response = await scene.sender().post(peer.url, [], b"", timeout=5)
    assert (response.status, response.body) == (200, b"half")


# --- what is no answer at all ---


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",  # HTTP/0.9
        b"<html>no</html>",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",  # HTTP/2
        b"\x15\x03\x01\x00\x02\x02\x50",  # a TLS alert
        b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 1000 Much\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 -200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"fffffffffffffffffffff\r\n",
    ],
    ids=lambda data: ascii(data)[2:50],
)
async def test_a_malformed_answer_has_an_unknown_outcome(scene: Scene, data: bytes) -> None:
    peer = await scene.peer(answering(data, then_close=True))
    with pytest.raises(UnknownOutcome) as caught:
        await scene.sender().post(f"{peer.url}?key=secret", [], b"x", timeout=5)
    # The reason is kept with the attempt and logged.
    reason = str(caught.value)
    assert "secret" not in reason
    assert len(reason) < 300
    assert reason.isprintable()


ANSWER_PIECES = st.lists(
    st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 \r\n", b"HTTP/1.0 500\r\n", b"HTTP/1.1 101 S\r\n"]
    )
    | st.sampled_from(
        [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Set-Cookie: a=b\r\n"]
    )
    | st.sampled_from([b"Connection: close\r\n", b"Content-Encoding: gzip\r\n", b"Upgrade: x\r\n"])
    | st.sampled_from([b"\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b": ", b"\x00", b"\n", b" "])
    | st.binary(max_size=5),
    max_size=12,
).map(b"".join)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=300, deadline=None)
@given(data=ANSWER_PIECES)
def test_whatever_comes_is_an_answer_or_an_unknown_outcome(
    runner: asyncio.Runner, data: bytes
) -> None:
    async def outcome() -> SentResponse | UnknownOutcome:
        async with Scene.open() as scene:
            peer = await scene.peer(answering(data, then_close=True))
            try:
                return await scene.sender().post(peer.url, [], b"x", timeout=5)
            except UnknownOutcome as error:
                return error

    result = runner.run(outcome())
    if isinstance(result, UnknownOutcome):
        assert "no answer within" not in str(result)
    else:
        assert b"HTTP/1." in data


# --- answers that belong to no request ---


class Numbering:
    """Answers each request with its number, and with what else it is told, when it is told."""

    def __init__(self, extra: bytes) -> None:
        self._extra = extra
        self._numbers = count(1)
        self._now = asyncio.Event()
        self._done = asyncio.Event()

    async def behave(
        self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await peer.read(reader)
            number = b"%d" % next(self._numbers)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number)
            await writer.drain()
            if number == b"1":
                await self._now.wait()
                writer.write(self._extra)
                if not self._extra:
                    writer.write_eof()
                await writer.drain()
                self._done.set()

    async def misbehave(self) -> None:
        self._now.set()
        await self._done.wait()


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(FORGED, id="answer"),
        pytest.param(FORGED[:-3], id="part-of-an-answer"),
        pytest.param(FORGED[:7], id="part-of-a-status-line"),
        pytest.param(INTERIM, id="interim-answer"),
        pytest.param(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", id="408"),
        pytest.param(b"\r\n", id="blank-line"),
        pytest.param(b"\x00", id="garbage"),
        pytest.param(b"", id="end"),
    ],
)
async def test_what_comes_on_an_idle_connection_is_not_the_next_answer(
    scene: Scene, extra: bytes, noticed: bool
) -> None:
    numbering = Numbering(extra)
    peer = await scene.peer(numbering.behave)
    other = await scene.peer(answering(OK))
    sender = scene.sender()
    assert (await sender.post(peer.url, [], b"", timeout=5)).body == b"1"
    await numbering.misbehave()
    if noticed:  # the event loop, by a turn in which it looked at every socket
        await sender.post(other.url, [], b"", timeout=5)
    response = await sender.post(peer.url, [], b"", timeout=5)
    assert response.body == b"2"
    assert peer.connections == 2


@pytest.mark.parametrize("extra", [FORGED, FORGED[:-3], FORGED[:7], b"x", b"\r\n" + FORGED])
async def test_what_follows_an_answer_at_once_is_not_the_next_one(
    scene: Scene, extra: bytes
) -> None:
    async def behave(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await peer.read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + request.body + extra)
            await writer.drain()

    peer = await scene.peer(behave)
    sender = scene.sender()
    for number in (b"1", b"2", b"3"):
        try:
            assert (await sender.post(peer.url, [], number, timeout=5)).body == number
        except UnknownOutcome as error:
            assert "malformed answer" in str(error)  # noqa: PT017 - either is right


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


@pytest.mark.parametrize(
    "location",
    [
        "{elsewhere}",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "//169.254.169.254/",
        "/elsewhere",
        "file:///etc/passwd",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_answers(scene: Scene, status: int, location: str) -> None:
    elsewhere = await scene.peer(answering(OK))
    location = location.format(elsewhere=elsewhere.url)
    peer = await scene.peer(
        answering(
            f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        )
    )
    response = await scene.sender().post(peer.url, [], b"x", timeout=5)
    assert response.status == status
    assert len(peer.requests) == 1
    assert elsewhere.connections == 0


@pytest.mark.parametrize("status", [0, 99, 101, 999])
async def test_a_status_beyond_the_usual_ones_is_handed_on(scene: Scene, status: int) -> None:
    peer = await scene.peer(
        answering(b"HTTP/1.1 %03d X\r\nContent-Length: 0\r\n\r\n" % status, then_close=True)
    )
    assert (await scene.sender().post(peer.url, [], b"x", timeout=5)).status == status


async def test_closing_ends_what_is_in_flight(scene: Scene) -> None:
    peer = await scene.peer(silent)
    sender = scene.sender()
    posting = asyncio.ensure_future(sender.post(peer.url, [], b"x", timeout=20))
    async with asyncio.timeout(10):
        await peer.asked.wait()
        await sender.aclose()
        with pytest.raises(UnknownOutcome):
            await posting


# --- TLS ---

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("names", "validity", "says"),
    [
        (["peer.example"], {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}, "expired"),
        (["peer.example"], {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}, "not yet valid"),
        (["other.example"], {}, "mismatch"),
        (["*.peer.example"], {}, "mismatch"),
        (["example"], {}, "mismatch"),
        (["127.0.0.1"], {}, "mismatch"),
    ],
    ids=["expired", "not-yet-valid", "other-name", "names-below", "name-above", "address"],
)
async def test_a_certificate_that_is_not_the_hosts_is_not_trusted(
    scene: Scene, names: list[str], validity: dict[str, datetime], says: str
) -> None:
    authority = Authority()
    peer = await scene.peer(answering(OK), tls=authority.server(*names, **validity))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]), ssl_context=authority.client())
    with pytest.raises(Unreachable, match=f"(?i){says}"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=5)
    assert peer.requests == []


async def test_an_unknown_authority_is_not_trusted(scene: Scene) -> None:
    peer = await scene.peer(answering(OK), tls=Authority().server("peer.example"))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable, match="certificate"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=5)
    assert peer.requests == []


async def mute(_: Peer, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_handshake_that_hangs_is_unreachable(scene: Scene) -> None:
    peer = await scene.peer(mute)
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable, match="no answer within"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=0.3)


@pytest.mark.parametrize(
    "behaviour",
    [
        resetting(b"", read=False),
        resetting(OK, read=False),
        resetting(b"\x16\x03\x03\x40\x00", read=False),
    ],
    ids=["reset", "plain-http", "half-a-record"],
)
async def test_a_handshake_that_fails_is_unreachable(scene: Scene, behaviour: Behaviour) -> None:
    peer = await scene.peer(behaviour)
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=5)


async def test_a_handshake_that_drips_is_unreachable(scene: Scene) -> None:
    async def drip(_: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
        while True:
            writer.write(b"\x00")
            await writer.drain()
            await asyncio.sleep(0.02)

    peer = await scene.peer(drip)
    sender = scene.sender(resolver=resolving(["127.0.0.1"]))
    with pytest.raises(Unreachable, match="no answer within"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=0.3)


async def test_an_answer_over_tls_is_bounded_as_well(scene: Scene) -> None:
    authority = Authority()
    peer = await scene.peer(streaming(b"", _filling(INTERIM)), tls=authority.server("peer.example"))
    sender = scene.sender(resolver=resolving(["127.0.0.1"]), ssl_context=authority.client())
    with pytest.raises(UnknownOutcome, match="more than"):
        await sender.post(f"https://peer.example:{peer.port}/", [], b"x", timeout=20)
