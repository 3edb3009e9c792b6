"""A real gateway: as a process of its own, or on the test's event loop.

`with GatewayProcess.start("tests/x/services.py:services", tmp_path / "n.db") as process:` serves at
`process.base_url`; `async with served(create_app([Handler()], database=url)) as here:` serves at
`here.base_url`, and `here.gateway` is what programs may ask.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from gateway.http_protocol import Http1Protocol
from gateway.runtime import Gateway
from tests.support.orphans import forget_child, kill_if_orphaned

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("nexus-gateway")

# A line of its own, or the message of a JSON log line.
_LISTENING = re.compile(r"listening on (http://[^\s\"]+)")
_STARTS_WITHIN_SECONDS = 30.0


class GatewayNotStarted(Exception):
    """The process ended, or did not listen in time; the message has its output and exit code."""


class GatewayProcess:
    """`nexus-gateway serve` on a free port of 127.0.0.1, ready for requests.

    Everything here blocks; from a coroutine that must go on meanwhile, a callback receiver's for
    one, use `await asyncio.to_thread(GatewayProcess.start, ...)`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="gateway-log", daemon=True)
        self._reader.start()
        self.base_url = ""

    @classmethod
    def start(
        cls,
        target: str | Sequence[str],
        database: Path | str,
        *options: str,
        env: Mapping[str, str] | None = None,
        port: int = 0,
        cwd: Path = REPOSITORY,
        command: Sequence[str] = (str(COMMAND),),
        measured: bool = True,
    ) -> Self:
        """Start a gateway and wait until it listens.

        Args:
            target: `MODULE:ATTRIBUTE` or `FILE:ATTRIBUTE`; several as a sequence.
            database: The path of a SQLite file, or a URL.
            *options: More options of `serve`, such as `--allow-private-callbacks`.
            env: Environment variables besides this process's own.
            port: 0 for a free one; a number to come back on the address of an earlier process.
            cwd: The working directory; the repository's root by default.
            command: What is run, with the arguments of `nexus-gateway` added.
            measured: Whether its coverage counts, which costs it a third of its speed.

        Raises:
            GatewayNotStarted: It ended, or did not listen within 30 s.
        """
        targets = [target] if isinstance(target, str) else list(target)
        left_out = ("NEXUS_GATEWAY_",) if measured else ("NEXUS_GATEWAY_", "COVERAGE_PROCESS_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        process = subprocess.Popen(
            [
                *command,
                "serve",
                *targets,
                "--port",
                str(port),
                "--database",
                database if isinstance(database, str) else f"sqlite:///{database}",
                *options,
            ],
            cwd=cwd,
            env={**inherited, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        kill_if_orphaned(process.pid)
        gateway = cls(process)
        line = gateway.wait_for_log("listening on http://", _STARTS_WITHIN_SECONDS)
        address = _LISTENING.search(line or "")
        if address is None:
            gateway.kill9()
            raise GatewayNotStarted(f"exit code {process.returncode}:\n{gateway.log()}")
        gateway.base_url = address[1]
        return gateway

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.base_url.rpartition(":")[2])

    def log(self) -> str:
        """Return what the process wrote to standard error so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_log(self, text: str, timeout_seconds: float = 10.0) -> str | None:
        """Return the first line with a text; None if the process ends or time runs out before."""
        deadline = time.monotonic() + timeout_seconds
        seen = 0
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if text in line:
                        return line
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def kill9(self) -> None:
        """End the process at once, without any chance to clean up; harmless when it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self._wait()

    def terminate(self, timeout_seconds: float = 20.0) -> int:
        """Send SIGTERM, wait for the drain, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end in time (it is killed then).
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_seconds)
        finally:
            self.kill9()
        return self.process.returncode

    def freeze(self) -> None:
        """Stop the process where it is (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # SIGTERM first: a process that is killed outright writes no coverage data.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.terminate()

    def _wait(self) -> None:
        self.process.wait()
        forget_child(self.process.pid)
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Served:
    """A gateway on the test's own event loop."""

    base_url: str
    gateway: Gateway


@contextlib.asynccontextmanager
async def served(app: Starlette, *, port: int = 0) -> AsyncIterator[Served]:
    """Serve an app of `gateway.create_app` with uvicorn on this event loop and a real socket."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app, http=Http1Protocol, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = _Server(config)
    with listener:
        async with app.router.lifespan_context(app):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            host, port = listener.getsockname()
            try:
                yield Served(f"http://{host}:{port}", app.state.gateway)
            finally:
                app.state.gateway.release_waiters()
                server.should_exit = True
                server.force_exit = True
                await serving


def free_port() -> int:
    """Return a port that nobody listens on, for who has to know its address before it serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: Ctrl-C belongs to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
