"""What a clause works with: the gateway under test, and a receiver of its completions."""

import itertools
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.support.callback_receiver import CallbackReceiver, Received
from tests.support.raw_http import RawResponse, exchange, request

JSON = {"Content-Type": "application/json"}

_numbers = itertools.count(1)


def post(
    target: str | bytes,
    value: Any = None,
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]] = (),
    *,
    body: bytes | None = None,
) -> bytes:
    """Render a POST of a JSON value; with `body`, of these bytes and no `Content-Type`."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if body is None:
        pairs = [*JSON.items(), *pairs]
        body = json.dumps(value).encode()
    return request("POST", target, pairs, body)


def get(target: str | bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Render a GET."""
    return request("GET", target, headers or {}, content_length=False)


@dataclass
class World:
    """A gateway that listens, and a fresh receiver."""

    base_url: str
    receiver: CallbackReceiver
    name: str = field(default_factory=lambda: f"n{next(_numbers)}-{uuid.uuid4().hex[:8]}")

    async def exchange(self, raw: bytes) -> RawResponse:
        """Send bytes; `{receiver}` stands for the escaped URL of the receiver."""
        url = quote(self.receiver.url(), safe="").encode()
        return await exchange(self.base_url, raw.replace(b"{receiver}", url))

    def callback(self, path: str = "/callback") -> str:
        """Return a query string that asks for the completion."""
        return "callback=" + quote(self.receiver.url(path), safe="")

    async def start(
        self,
        path: str,
        value: Any = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        callback: bool = False,
    ) -> RawResponse:
        """Start an operation below `/services`."""
        query = f"?{self.callback()}" if callback else ""
        return await self.exchange(post(f"/services/{path}{query}", value, headers))

    async def started(
        self,
        path: str,
        value: Any = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        callback: bool = False,
    ) -> str:
        """Start an operation that goes on, and return its token."""
        answer = await self.start(path, value, headers, callback=callback)
        assert answer.status == 201, answer.body
        token: str = answer.json()["token"]
        return token

    async def cancel(self, path: str, token: str) -> RawResponse:
        """Ask an operation to end."""
        headers = {"Nexus-Operation-Token": token}
        return await self.exchange(request("POST", f"/services/{path}/cancel", headers))

    async def result(self, path: str, token: str, wait: str | None = "10s") -> RawResponse:
        """Ask for a result."""
        query = "" if wait is None else f"?wait={wait}"
        return await self.exchange(
            get(f"/services/{path}/result{query}", {"Nexus-Operation-Token": token})
        )

    async def open_gate(self, name: str) -> None:
        """Let the operation `durable/gated` that waits at a gate go on."""
        answer = await self.start("inline/open-gate", name)
        assert answer.status == 200, answer.body

    async def completion(self, path: str = "/callback") -> Received:
        """Wait for the first completion to arrive."""
        return await self.receiver.one(path)
