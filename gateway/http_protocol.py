"""uvicorn's HTTP/1.1, with upgrades declined, heads bounded and broken requests answered typed."""

import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.error_responses import bad_request, error_response

_HEAD_BYTES = 64 * 1024
_OFFER = re.compile(rb"^upgrade[ \t]*:[^\n]*\n", re.IGNORECASE | re.MULTILINE)


class Http1Protocol(HttpToolsProtocol):
    """Declines every offer to upgrade, by ignoring it, and refuses what is no request.

    Java's client offers HTTP/2 (`Upgrade: h2c`) with each first request over plain HTTP. httptools
    takes HTTP to be over then: it skips the body, which would arrive as an empty one, the input
    null, and the connection reads nothing more. So the offer is taken out before it is parsed.

    Spec: RFC 9110, section 7.8
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_body = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, without offers in the head."""
        if not self._in_body:
            if b"pgrade" in data or b"PGRADE" in data:
                head, end, rest = data.partition(b"\r\n\r\n")
                data = _OFFER.sub(b"", head + end) + rest
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            # Nothing below counts the bytes of a head that does not end.
            self.send_400_response(f"the request's head is over the limit of {_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Note that a body follows."""
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a head follows."""
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request with the protocol's own error, and hang up."""
        answer = error_response(bad_request(msg))
        headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 {answer.status} Bad Request\r\n{lines}Connection: close\r\n\r\n"
        self.transport.write(head.encode("latin-1") + answer.body)
        self.transport.close()
