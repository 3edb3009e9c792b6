"""Peers that behave as a test tells them, byte by byte, and the senders that call them."""

import asyncio
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import trustme

from callbacks.egress import EgressPolicy
from callbacks.sender import AiohttpSender

PRIVATE = EgressPolicy(allow_private=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


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
    asked: asyncio.Event = field(default_factory=asyncio.Event)

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
        self.asked.set()
        return request


class Scene:
    """Starts peers and senders, and ends them with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            yield cls(stack)

    async def peer(
        self, behaviour: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> Peer:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return await self.listen(
            Peer(), behaviour, socket.create_server((host, 0), family=family), tls=tls
        )

    async def listen(
        self,
        peer: Peer,
        behaviour: Behaviour,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> Peer:
        """Let a peer answer on one more socket, which is closed with the test."""
        serving: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer.connections += 1
            serving.add(task := asyncio.ensure_future(_until_gone(peer, behaviour, reader, writer)))
            await asyncio.wait([task])

        server = await asyncio.start_server(serve, sock=listener, ssl=tls)
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


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class Authority:
    """A certificate authority of the test's own, and what was asked of its server."""

    ca: trustme.CA = field(default_factory=trustme.CA)
    asked_for: list[str | None] = field(default_factory=list)

    def server(self, *names: str, **certificate: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, **certificate).configure_cert(context)

        def note(_socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            self.asked_for.append(name)

        context.sni_callback = note
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


class Dials:
    """Notes every address that a socket of this process is connected to, while it is on."""

    def __init__(self) -> None:
        self.addresses: list[str] | None = None
        sys.addaudithook(self._note)  # for good: Python cannot take one away

    @contextmanager
    def noted(self) -> Iterator[list[str]]:
        noted: list[str] = []
        self.addresses = noted
        try:
            yield noted
        finally:
            self.addresses = None

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.addresses is not None and event == "socket.connect":
            _, address = arguments
            assert isinstance(address, tuple)
            self.addresses.append(address[0])


@cache
def dials() -> Dials:
    return Dials()
