"""The connections of a sender: how much a peer may send on one, and when one may be used again."""

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

    _received_bytes = 0

    def is_connected(self) -> bool:
        """Whether the connection can carry another request; aiohttp asks this of idle ones.

        What arrives on an idle connection is its end, or an answer that nobody asked for and that
        would be taken for the answer to the next request.
        """
        return super().is_connected() and not self.should_close and not self._is_readable()

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

    def _is_readable(self) -> bool:
        """Whether something has arrived that the event loop has not seen yet."""
        assert self.transport is not None  # `is_connected` looked
        poll = select.poll()  # unlike `select.select` at home with descriptors above 1023
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))


class BoundedConnector(TCPConnector):
    """aiohttp's pool, of such connections."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no argument for it; tests/callbacks/test_hostile_receivers.py holds that every
        # connection is of this kind.
        factory = partial(BoundedProtocol, loop=self._loop)
        self._factory = cast("partial[ResponseHandler]", factory)
