"""The connections of a sender: how much a peer may send on one, and when one may be used again."""

import asyncio
import select
from functools import partial
from typing import Any, cast

from aiohttp import ClientPayloadError, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import set_exception

__all__ = ["ANSWER_BYTES", "BoundedConnector", "BoundedProtocol"]

ANSWER_BYTES = 512 * 1024
"""What one answer may take on the wire, its framing included; a body has a smaller cap of its own.

Interim answers, chunk extensions and blank lines are neither header nor body, so that no other
limit ends a flood of them: it would keep the event loop busy until the deadline of the attempt.
"""


class BoundedProtocol(ResponseHandler):
    """An HTTP connection that a peer can neither flood nor answer on before it is asked."""

    peer: str | None = None
    """`host:port` at the other end."""

    _received_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note what stays the same for every request on this connection."""
        super().connection_made(transport)
        self.peer = _host_and_port(transport.get_extra_info("peername"))
        # Unlike `select.select` at home with descriptors above 1023.
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def is_connected(self) -> bool:
        """Whether the connection can carry another request; aiohttp asks this of idle ones.

        What arrives on an idle connection is its end, or an answer that nobody asked for and that
        would be taken for the answer to the next request.
        """
        # The last looks for what the event loop has not seen yet.
        return super().is_connected() and not self.should_close and not self._poll.poll(0)

    def set_response_params(self, **params: Any) -> None:
        """Expect the answer to one request, as aiohttp does before it sends each."""
        self._received_bytes = 0
        self._payload = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Parse what the peer sent, and hang up on one that does not come to an end."""
        self._received_bytes += len(data)
        if data and self._payload is not None and self._payload.is_eof():
            self.force_close()  # behind the end of the answer, so that it is not used again
        super().data_received(data)
        if self._received_bytes > ANSWER_BYTES and self.transport is not None:
            endless = ClientPayloadError(f"more than {ANSWER_BYTES} bytes for one answer")
            if self._payload is not None:
                set_exception(self._payload, endless)
            self.set_exception(endless)
            self.transport.abort()


class BoundedConnector(TCPConnector):
    """aiohttp's pool, of such connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no argument for it; tests/callbacks/test_hostile_receivers.py holds that every
        # connection is of this kind.
        factory = partial(BoundedProtocol, loop=self._loop)
        self._factory = cast("partial[ResponseHandler]", factory)


def _host_and_port(peername: tuple[str, int] | tuple[str, int, int, int] | None) -> str | None:
    if not peername:
        return None
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
