"""Another team's endpoint, as an httpx transport: what it was asked, and answers as it is told."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from callbacks.database import Database
from callbacks.signing_keys import CALLS, SigningKeys
from handlers.call_completions import CallCompletions
from handlers.outgoing_calls import OutgoingCalls, RemoteEndpoint
from nexus_spec import Headers, parse_completion

Respond = Callable[[httpx.Request], httpx.Response]

LOST = httpx.ReadError("the connection broke")


@dataclass
class RemoteOperation:
    """An operation as the other side holds it."""

    token: str
    input: Any
    callback_token: str | None
    headers: httpx.Headers
    outcome: httpx.Response | None = None
    cancels: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, outcome: httpx.Response) -> None:
        """End it; only who asks learns of it."""
        self.outcome = outcome
        self.ended.set()


class FakeRemote(httpx.AsyncBaseTransport):
    """The endpoint `shipping`: `book` runs until it is ended, `quote` answers at once.

    Attributes:
        operations: By request id.
        requests: Every request that arrived, as `start`, `cancel` or `result`.
        script: What the next requests meet instead of an answer, by kind: a response, or an error
            that is raised; `LOST` after the request had its effect.
    """

    def __init__(self, *, callbacks: bool = True) -> None:
        self.callbacks = callbacks
        self.operations: dict[str, RemoteOperation] = {}
        self.requests: list[str] = []
        self.script: dict[str, list[httpx.Response | Exception]] = {}
        self.changed = asyncio.Event()
        self.on_start: Callable[[RemoteOperation], httpx.Response | None] = lambda operation: None

    def outgoing(self, database: Database) -> OutgoingCalls:
        """Return what an engine calls this with."""
        return OutgoingCalls(
            {"shipping": RemoteEndpoint(url="http://remote/base", callbacks=self.callbacks)},
            SigningKeys(database, CALLS),
            public_url="http://me.example",
            transport=self,
        )

    async def started(self, count: int = 1) -> list[RemoteOperation]:
        """Wait until so many operations were started here."""
        async with asyncio.timeout(10):
            while len(self.operations) < count:
                self.changed.clear()
                await self.changed.wait()
        return list(self.operations.values())

    async def asked(self, kind: str, count: int = 1) -> None:
        """Wait until so many requests of a kind came."""
        async with asyncio.timeout(10):
            while self.requests.count(kind) < count:
                self.changed.clear()
                await self.changed.wait()

    async def complete(
        self,
        database: Database,
        operation: RemoteOperation,
        result: Any = None,
        *,
        state: str = "succeeded",
        link: str | None = None,
    ) -> bool:
        """End an operation and deliver its completion, as the callback route does."""
        completions = CallCompletions(database, SigningKeys(database, CALLS))
        call = await completions.call_of(operation.callback_token or "")
        headers = {
            "nexus-operation-state": state,
            "nexus-operation-token": operation.token,
            "content-type": "application/json",
        }
        if link is not None:
            headers["nexus-link"] = f'<{link}>; type="ship.Booking"'
        body = json.dumps({"message": result} if state != "succeeded" else result).encode()
        completion = parse_completion(Headers(headers), body)
        return await completions.take(call, completion)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        kind = {"cancel": "cancel", "result": "result"}.get(
            request.url.path.rpartition("/")[2], "start"
        )
        self.requests.append(kind)
        self.changed.set()
        scripted = self.script.get(kind)
        step = scripted.pop(0) if scripted else None
        if isinstance(step, httpx.Response):
            return step
        if step is not None and step is not LOST:
            raise step
        answer = await getattr(self, f"_{kind}")(request)
        if step is LOST:
            raise httpx.ReadError("the connection broke", request=request)
        assert isinstance(answer, httpx.Response)
        return answer

    async def _start(self, request: httpx.Request) -> httpx.Response:
        request_id = request.headers["nexus-request-id"]
        operation = self.operations.get(request_id)
        if operation is None:
            operation = self.operations[request_id] = RemoteOperation(
                f"remote-{len(self.operations) + 1}",
                json.loads(await request.aread() or b"null"),
                request.headers.get("nexus-callback-token"),
                request.headers,
            )
            operation.outcome = self.on_start(operation)
            self.changed.set()
        if operation.outcome is not None:
            return operation.outcome
        return httpx.Response(201, json={"token": operation.token, "state": "running"})

    async def _cancel(self, request: httpx.Request) -> httpx.Response:
        operation = self._find(request)
        if operation is None:
            return failure(404, "NOT_FOUND", "no such operation")
        operation.cancels += 1
        return httpx.Response(202)

    async def _result(self, request: httpx.Request) -> httpx.Response:
        operation = self._find(request)
        if operation is None:
            return failure(404, "NOT_FOUND", "no such operation")
        wait = request.url.params.get("wait")
        if wait is not None and operation.outcome is None:
            await asyncio.wait(
                [asyncio.ensure_future(operation.ended.wait())],
                timeout=float(wait.removesuffix("ms")) / 1000,
            )
        return operation.outcome or httpx.Response(408 if wait else 412)

    def _find(self, request: httpx.Request) -> RemoteOperation | None:
        token = request.headers["nexus-operation-token"]
        return next((o for o in self.operations.values() if o.token == token), None)


def succeeded(value: Any) -> httpx.Response:
    """Return a result."""
    return httpx.Response(200, json=value, headers={"nexus-operation-state": "succeeded"})


def failed(state: str, message: str) -> httpx.Response:
    """Return the end of an operation that failed or was canceled."""
    body = {
        "message": message,
        "metadata": {"type": "nexus.OperationError"},
        "details": {"state": state},
    }
    return httpx.Response(424, json=body, headers={"nexus-operation-state": state})


def failure(status: int, type_name: str, message: str) -> httpx.Response:
    """Return the refusal of a request."""
    body = {
        "message": message,
        "metadata": {"type": "nexus.HandlerError"},
        "details": {"type": type_name},
    }
    return httpx.Response(status, json=body)
