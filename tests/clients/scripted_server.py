"""A server on a real socket that answers each request with the next of the bytes it was given."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from nexus_spec import Headers


@dataclass(frozen=True)
class Seen:
    method: str
    target: str
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Drip:
    """Answer the head, then a byte now and then, and never end."""

    head: bytes


@dataclass
class ScriptedServer:
    seen: list[Seen] = field(default_factory=list)
    first_request: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: list[bytes | Drip | None] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def will_answer(self, *answers: bytes | Drip | None) -> None:
        """Queue answers; None closes the connection without one, and the last one repeats."""
        self._answers.extend(answers)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").strip().split("\r\n")
        method, target, _ = request_line.split(" ")
        pairs = (line.split(": ", 1) for line in lines)
        headers = Headers.from_pairs((name, value) for name, value in pairs)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.seen.append(Seen(method, target, headers, body))
        self.first_request.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        match answer:
            case None:
                return False
            case Drip():
                writer.write(answer.head)
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            case bytes():
                writer.write(answer)
                await writer.drain()
                return True


def answer(
    status: int, body: bytes | dict[str, Any] | list[Any] | str = b"", **headers: str
) -> bytes:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("content_type", "application/json")
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def started(token: str = "tok1", **headers: str) -> bytes:
    return answer(201, {"token": token, "state": "running"}, **headers)


def handler_error(type: str, status: int, message: str = "no", **headers: str) -> bytes:
    body = {
        "message": message,
        "metadata": {"type": "nexus.HandlerError"},
        "details": {"type": type},
    }
    return answer(status, body, **headers)


def operation_error(state: str = "failed", message: str = "out of stock") -> bytes:
    body = {
        "message": message,
        "metadata": {"type": "nexus.OperationError"},
        "details": {"state": state},
        "cause": {"message": "shelf empty"},
    }
    return answer(424, body, nexus_operation_state=state)
