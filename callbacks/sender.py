"""The network half of delivery: one bounded POST over aiohttp, with the egress guard inside.

The guard sits where addresses are used and not before: the resolver's answer is judged as a whole,
and the socket is opened for the very address that was judged. A name that changes its mind between
the check and the dial gains nothing.

With a proxy, which an operator has to ask for, the dial goes to the proxy: its address is trusted,
and what it calls in turn is up to it. The text of the URL is judged all the same.
"""

import asyncio
import errno
import io
import socket
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import lru_cache
from ssl import SSLContext

import aiohttp
from aiohttp import AddrInfoType, ClientRequest, ClientResponse, ClientSession
from aiohttp.connector import Connection
from multidict import CIMultiDict, istr
from yarl import URL

from callbacks.connections import BoundedConnector, BoundedProtocol
from callbacks.egress import Destination, EgressPolicy, check_callback_url, refused_address
from callbacks.errors import AddressRefused, NotSent, UrlRefused
from callbacks.header_rules import is_sent, sent_value
from callbacks.proxies import Proxies, Proxy
from callbacks.resolver import Resolver, ResolverOfAiohttp, SystemResolver
from callbacks.send_failures import SEND_FAILURES, reason_of
from clients.errors import UnknownOutcome, Unreachable
from clients.sender import SentResponse
from nexus_spec import Headers

__all__ = ["AiohttpSender"]

# Below the 5 s after which the common servers (uvicorn, Node) close an idle connection: a request
# that crosses that close has an unknown outcome.
_KEEP_ALIVE_SECONDS = 4.0
_OUT_OF_SOCKETS = frozenset({errno.EMFILE, errno.ENFILE})
# aiohttp writes a body of bytes in one piece, and warns above 1 MiB.
_BODY_IN_ONE_PIECE_BYTES = 256 * 1024

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
# Only what the completion says is sent; aiohttp would add a type of its own.
_NOT_ADDED: CIMultiDict[None] = CIMultiDict({"Content-Type": None})
# aiohttp puts the headers into three mappings in turn, which is quicker with names of this kind.
_USER_AGENT = istr("User-Agent")
_ACCEPT_ENCODING = istr("Accept-Encoding")


class _Target:
    """A checked URL, ready to be dialled, and the proxy to dial in its place."""

    __slots__ = ("destination", "private", "proxy", "url")

    def __init__(
        self, url: URL, destination: Destination, *, private: bool, proxy: Proxy | None
    ) -> None:
        self.url = url
        self.destination = destination
        self.private = private
        self.proxy = proxy


class _Attempt:
    """What the guard and the connection report about one POST."""

    __slots__ = ("address", "no_socket", "refused", "sent", "target")

    def __init__(self, target: _Target) -> None:
        self.target = target
        self.refused: str | None = None
        self.no_socket = False
        self.sent = False
        self.address: str | None = None


# aiohttp carries no argument of ours to the resolver, the socket factory and the request; all of
# them run in the task of the attempt, or in one started from it.
_attempt: ContextVar[_Attempt] = ContextVar("callback_attempt")


class AiohttpSender:
    """Sends completions, to nothing but what the policy allows: a `clients.sender.Sender`.

    Redirects are not followed, cookies are ignored, responses are not decompressed, and the
    environment says nothing. Connections are kept and reused; since a reused one is not judged
    again, each policy needs a sender of its own. Two senders share no connection, and one sender
    shares none between two hosts, ports or schemes, which are all that a policy looks at. Bound to
    the event loop of its first `post`.

    Args:
        policy: which URLs and addresses may be called.
        proxies: where to dial in place of the URL's host; direct by default.
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
        proxies: Proxies | None = None,
        resolver: Resolver | None = None,
        connections_per_destination: int = 64,
        response_bytes: int = 4096,
        ssl_context: SSLContext | None = None,
        user_agent: str = "nexus-rpc-gateway",
    ) -> None:
        self._policy = policy
        self._proxies = proxies or Proxies()
        self._system_resolver = SystemResolver()
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
            NotSent: this process has as many files open as it may.
        """
        attempt = _Attempt(self._target(url))
        fields = self._fields(headers, attempt.target)
        session = self._session or self._open()
        token = _attempt.set(attempt)
        try:
            return await self._exchange(session, attempt, fields, body, timeout)
        except TimeoutError as error:
            raise _failure(attempt, f"no answer within {timeout:g} s") from error
        except (*SEND_FAILURES, RuntimeError) as error:  # aiohttp's pool was closed meanwhile
            raise _failure(attempt, reason_of(error, attempt.target.url)) from error
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
                if attempt.target.proxy is None:
                    response = await session.post(
                        attempt.target.url, data=data, headers=fields, allow_redirects=False
                    )
                else:
                    response = await _post_through_proxy(
                        session, attempt.target, attempt.target.proxy, data, fields
                    )
                while len(content) < self._response_bytes and (
                    chunk := await response.content.readany()
                ):
                    content += chunk
        except SEND_FAILURES:  # a timeout is an OSError
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

    def _fields(self, headers: Sequence[tuple[str, str]], target: _Target) -> CIMultiDict[str]:
        fields: CIMultiDict[str] = CIMultiDict()
        for name, value in headers:
            sent = _sent_name(name)
            if sent is not None:
                spelled = sent if sent not in fields else _spelling(fields, name)
                fields.add(spelled, sent_value(name, value))
        fields.setdefault(_USER_AGENT, self._user_agent)
        fields.setdefault(_ACCEPT_ENCODING, "identity")
        # Through the tunnel of an https URL it is the destination that would see it.
        if target.proxy is not None and target.destination.scheme == "http":
            fields.extend(target.proxy.headers)
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
        return _Target(
            url,
            destination,
            private=self._policy.opens_private(destination),
            proxy=self._proxies.proxy_for(destination),
        )

    def _open(self) -> ClientSession:
        if self._closed:
            raise Unreachable("the sender is closed")
        self._session = ClientSession(
            connector=BoundedConnector(
                resolver=ResolverOfAiohttp(self._look_up),
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
        attempt = _attempt.get()
        self._judge(attempt, str(address[0]))
        try:
            return socket.socket(family, kind, protocol)
        except OSError as error:
            attempt.no_socket = error.errno in _OUT_OF_SOCKETS
            raise

    def _judge(self, attempt: _Attempt, address: str) -> None:
        if attempt.target.proxy is not None:
            return
        reason = refused_address(address, self._policy, private=attempt.target.private)
        if reason is not None:
            attempt.refused = attempt.refused or reason
        if attempt.refused is not None:
            # An OSError is what aiohttp expects from a connection that cannot be made.
            raise OSError(attempt.refused)


class _ReportingRequest(ClientRequest):
    """Notes that, and to which address, the request goes out: what tells lost from never sent."""

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add nothing to the headers; the session's `skip_auto_headers` does it at some length."""
        self._skip_auto_headers = _NOT_ADDED

    async def send(self, conn: Connection) -> ClientResponse:
        attempt = _attempt.get()
        attempt.sent = True
        if isinstance(conn.protocol, BoundedProtocol):
            attempt.address = conn.protocol.peer
        return await super().send(conn)


async def _post_through_proxy(
    session: ClientSession,
    target: _Target,
    proxy: Proxy,
    data: bytes | io.BytesIO,
    fields: CIMultiDict[str],
) -> ClientResponse:
    return await session.post(
        target.url,
        data=data,
        headers=fields,
        allow_redirects=False,
        proxy=proxy.url,
        proxy_headers=proxy.headers,  # with CONNECT only
        # Inside a tunnel aiohttp would keep the final dot of a name, which no certificate has.
        server_hostname=target.destination.host if target.url.scheme == "https" else None,
    )


def _failure(attempt: _Attempt, reason: str) -> Unreachable | UnknownOutcome | NotSent:
    if attempt.refused is not None:
        return AddressRefused(f"{attempt.target.destination.name}: {attempt.refused}")
    if not attempt.sent and attempt.no_socket:
        return NotSent("not sent: this process has too many files open; raise its limit")
    if not attempt.sent:
        return Unreachable(f"{attempt.target.destination.name}: not reached: {reason}")
    return UnknownOutcome(f"{attempt.target.destination.name} ({attempt.address}): {reason}")


@lru_cache(maxsize=1024)
def _sent_name(name: str) -> istr | None:
    return istr(name) if is_sent(name) else None


def _spelling(fields: CIMultiDict[str], name: str) -> str:
    # aiohttp keeps repeated fields only where all of them are spelled alike.
    return next(known for known in fields if known.lower() == name.lower())


def _plain(host: str | None) -> str:
    return (host or "").lower().removesuffix(".")
