"""The network half of delivery: one bounded POST over aiohttp, with the egress guard inside.

The guard sits where addresses are used and not before: the resolver's answer is judged as a whole,
and the socket is opened for the very address that was judged. A name that changes its mind between
the check and the dial gains nothing.
"""

import asyncio
import io
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from ssl import SSLContext

import aiohttp
from aiohttp import AddrInfoType, ClientRequest, ClientResponse, ClientSession
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

from callbacks.egress import Destination, EgressPolicy, check_callback_url, refused_address
from callbacks.errors import AddressRefused, UrlRefused
from callbacks.header_rules import is_sent, sent_value
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from nexus_spec import Headers

__all__ = ["AiohttpSender", "Resolver"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up a host and port: every address, as text. Raises OSError where there is none."""

# Below the 5 s after which the common servers (uvicorn, Node) close an idle connection: a request
# that crosses that close has an unknown outcome.
_KEEP_ALIVE_SECONDS = 4.0
# A look-up in the system's resolver may hang for half a minute. Threads of its own keep one
# caller's dead name server away from everything else that runs on threads.
_RESOLVER_THREADS = 16
# aiohttp writes a body of bytes in one piece, and warns above 1 MiB.
_BODY_IN_ONE_PIECE_BYTES = 256 * 1024

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
# Only what the completion says is sent; aiohttp would add types and codings of its own.
_NOT_ADDED = ("Accept", "Content-Type", "User-Agent")


class _Target:
    """A checked URL, ready to be dialled."""

    __slots__ = ("destination", "private", "url")

    def __init__(self, url: URL, destination: Destination, *, private: bool) -> None:
        self.url = url
        self.destination = destination
        self.private = private


class _Attempt:
    """What the guard and the connection report about one POST."""

    __slots__ = ("address", "refused", "sent", "target")

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.refused: str | None = None
        self.sent = False
        self.address: str | None = None


# aiohttp carries no argument of ours to the resolver, the socket factory and the request; all of
# them run in the task of the attempt, or in one started from it.
_attempt: ContextVar[_Attempt] = ContextVar("callback_attempt")


class AiohttpSender:
    """Sends completions, to nothing but what the policy allows: a `clients.sender.Sender`.

    Redirects are not followed, cookies and proxies of the environment are ignored, responses are
    not decompressed. Connections are kept and reused; since a reused one is not judged again, each
    policy needs a sender of its own. Bound to the event loop of its first `post`.

    Args:
        policy: which URLs and addresses may be called.
        resolver: looks up host names; the system's by default, on threads of its own.
        connections_per_destination: further attempts wait for one, within their own timeout.
        response_bytes: how much of a response's body is read; the rest is cut off.
        ssl_context: for certificate authorities of one's own; by default the system's count.
        user_agent: sent unless the headers hold one.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        resolver: Resolver | None = None,
        connections_per_destination: int = 64,
        response_bytes: int = 4096,
        ssl_context: SSLContext | None = None,
        user_agent: str = "nexus-rpc-gateway",
    ) -> None:
        self._policy = policy
        self._system_resolver = _SystemResolver()
        self._resolver = resolver or self._system_resolver
        self._connections_per_destination = connections_per_destination
        self._response_bytes = response_bytes
        self._ssl_context = ssl_context
        self._user_agent = user_agent
        self._session: ClientSession | None = None
        self._closed = False
        # Most callers use one callback URL for all their operations.
        self._target = lru_cache(maxsize=1024)(self._checked_target)

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float
    ) -> SentResponse:
        """POST the body and return the answer, whatever its status.

        Once a status has arrived it is returned, even if the rest of the body never comes: the
        peer has decided.

        Args:
            url: sent as it is; `Host`, SNI and the certificate's name are its host.
            headers: sent in this order, except those of the connection (`Host`, `Content-Length`
                and the like), which the sender sets itself; it adds `User-Agent` and
                `Accept-Encoding: identity` where they are missing.
            body: sent as it is.
            timeout: seconds for everything: look-up, connection, request and response.

        Raises:
            Unreachable: the request was not sent.
            AddressRefused: the same, because an address of the host may not be called.
            UrlRefused: the policy forbids the URL.
            HeaderRefused: a header is malformed.
            UnknownOutcome: the peer may have received the request, and gave no answer.
        """
        attempt = _Attempt(self._target(url))
        fields = self._fields(headers)
        session = self._session or self._open()
        token = _attempt.set(attempt)
        try:
            return await self._exchange(session, attempt, fields, body, timeout)
        except TimeoutError as error:
            raise _failure(attempt, f"no answer within {timeout:g} s") from error
        except (aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
            raise _failure(attempt, str(error) or type(error).__name__) from error
        finally:
            _attempt.reset(token)

    async def aclose(self) -> None:
        """Close every connection; an attempt still in flight ends as of unknown outcome."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
        self._system_resolver.close()

    async def _exchange(
        self,
        session: ClientSession,
        attempt: _Attempt,
        fields: CIMultiDict[str],
        body: bytes,
        timeout: float,
    ) -> SentResponse:
        data = body if len(body) <= _BODY_IN_ONE_PIECE_BYTES else io.BytesIO(body)
        response: ClientResponse | None = None
        content = b""
        try:
            # aiohttp's own timeouts are per read: a peer that drips would never run into one.
            async with asyncio.timeout(timeout):
                response = await session.post(
                    attempt.target.url, data=data, headers=fields, allow_redirects=False
                )
                while len(content) < self._response_bytes and (
                    chunk := await response.content.readany()
                ):
                    content += chunk
        except (TimeoutError, aiohttp.ClientError, OSError):
            if response is None:
                raise
        finally:
            # Without effect on a connection that was read to its end and went back to the pool.
            if response is not None:
                response.close()
        return SentResponse(
            status=response.status,
            headers=Headers.from_raw(response.raw_headers),
            body=content[: self._response_bytes],
            address=attempt.address,
        )

    def _fields(self, headers: Sequence[tuple[str, str]]) -> CIMultiDict[str]:
        fields: CIMultiDict[str] = CIMultiDict()
        for name, value in headers:
            if is_sent(name):
                spelled = name if name not in fields else _spelling(fields, name)
                fields.add(spelled, sent_value(name, value))
        fields.setdefault("User-Agent", self._user_agent)
        fields.setdefault("Accept-Encoding", "identity")
        return fields

    def _checked_target(self, raw: str) -> _Target:
        destination = check_callback_url(raw, self._policy)
        url = URL(raw, encoded=True)
        if destination.address is not None and url.raw_host != destination.host:
            # Forms like 0x7f.1 are for `inet_aton`; what is dialled is what was judged.
            url = url.with_host(destination.host)
        # Two readers of one URL must not find two hosts in it.
        if (_plain(url.raw_host), url.port) != (destination.host, destination.port):
            raise UrlRefused("callback URL: the host is ambiguous")
        return _Target(url, destination, private=self._policy.opens_private(destination))

    def _open(self) -> ClientSession:
        if self._closed:
            raise Unreachable("the sender is closed")
        self._session = ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_GuardedResolver(self._look_up),
                socket_factory=self._open_socket,
                use_dns_cache=False,
                ssl=True if self._ssl_context is None else self._ssl_context,
                limit=0,
                limit_per_host=self._connections_per_destination,
                keepalive_timeout=_KEEP_ALIVE_SECONDS,
            ),
            request_class=_ReportingRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=_NO_TIMEOUT,
            skip_auto_headers=_NOT_ADDED,
        )
        return self._session

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        attempt = _attempt.get()
        addresses = await self._resolver(host, port)
        if not addresses:
            raise OSError(f"{host} has no address")
        # One denied address condemns the name: its owner would choose which of them is dialled.
        for address in addresses:
            self._judge(attempt, address)
        return addresses

    def _open_socket(self, info: AddrInfoType) -> socket.socket:
        # Addresses in URLs never meet the resolver: every dial comes through here.
        family, kind, protocol, _, address = info
        self._judge(_attempt.get(), str(address[0]))
        return socket.socket(family, kind, protocol)

    def _judge(self, attempt: _Attempt, address: str) -> None:
        reason = refused_address(address, self._policy, private=attempt.target.private)
        if reason is not None:
            attempt.refused = attempt.refused or reason
        if attempt.refused is not None:
            # An OSError is what aiohttp expects from a connection that cannot be made.
            raise OSError(attempt.refused)


class _ReportingRequest(ClientRequest):
    """Notes that, and to which address, the request goes out: what tells lost from never sent."""

    async def send(self, conn: Connection) -> ClientResponse:
        attempt = _attempt.get()
        attempt.sent = True
        transport = conn.transport
        if transport is not None:
            attempt.address = _host_and_port(transport.get_extra_info("peername"))
        return await super().send(conn)


class _GuardedResolver(AbstractResolver):
    """Hands aiohttp the addresses that passed the guard, in its own form."""

    def __init__(self, look_up: Resolver) -> None:
        self._look_up = look_up

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in await self._look_up(host, port)
        ]

    async def close(self) -> None:
        pass


class _SystemResolver:
    """`getaddrinfo` on threads that serve nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="callback-dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host, port)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host} is not a host name") from error
    return [str(address[0]) for *_, address in found]


def _failure(attempt: _Attempt, reason: str) -> Unreachable | UnknownOutcome:
    if attempt.refused is not None:
        return AddressRefused(f"{attempt.target.destination.name}: {attempt.refused}")
    if not attempt.sent:
        return Unreachable(f"{attempt.target.destination.name}: not reached: {reason}")
    return UnknownOutcome(f"{attempt.target.destination.name} ({attempt.address}): {reason}")


def _host_and_port(peername: tuple[str, int] | tuple[str, int, int, int] | None) -> str | None:
    if not peername:
        return None
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _spelling(fields: CIMultiDict[str], name: str) -> str:
    # aiohttp keeps repeated fields only where all of them are spelled alike.
    return next(known for known in fields if known.lower() == name.lower())


def _plain(host: str | None) -> str:
    return (host or "").lower().removesuffix(".")
