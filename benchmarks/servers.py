"""The servers under measurement: processes on free ports of 127.0.0.1."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[1]

_LISTENING = re.compile(r"(?:listening|running) on (http://127\.0\.0\.1:\d+)")
_STARTS_WITHIN_SECONDS = 30.0
_NEXUS_GATEWAY = Path(sys.executable).with_name("nexus-gateway")
_UVICORN = (
    *(sys.executable, "-m", "uvicorn", "--workers", "1", "--loop", "uvloop"),
    *("--http", "httptools", "--no-access-log", "--host", "127.0.0.1", "--port", "0"),
)


class ServerNotStarted(Exception):
    """A server ended, or did not listen in time; the message has what it wrote."""


class Server:
    """One server process; use it in a `with` block, which ends it."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log_path = folder / f"{name}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEXUS_", "FLOOR_"))}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**kept, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.base_url = self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def log(self) -> str:
        """Return what the server wrote."""
        return self._log_path.read_text(errors="replace")

    def kill(self) -> None:
        """End the process as `kill -9` does, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def resident_bytes(self) -> int:
        """Return how much memory the process has now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        if match is None:
            raise ServerNotStarted(f"{self.name} has ended:\n{self.log()}")
        return int(match[1]) * 1024

    def stop(self) -> None:
        """End the process: politely, and after 10 s for good."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_it_listens(self) -> str:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if (match := _LISTENING.search(self.log())) is not None:
                return match[1]
            time.sleep(0.02)
        raise ServerNotStarted(f"{self.name} (exit code {self._process.poll()}):\n{self.log()}")


def floor_gateway(folder: Path) -> Server:
    """Start the floor of a durable operation, on a new file, with an fsync on every commit."""
    environment = {"FLOOR_DB": str(folder / "floor.db"), "FLOOR_SYNC": "FULL"}
    command = [*_UVICORN, "benchmarks.floor_gateway:app"]
    return Server("floor", command, folder, environment)


def starlette_echo(folder: Path) -> Server:
    """Start the floor of an inline operation."""
    return Server("echo", [*_UVICORN, "benchmarks.echo_app:app"], folder, {})


def gateway(
    folder: Path,
    database: str | None = None,
    *,
    name: str = "gateway",
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start the gateway as its users do, on a database or on a new SQLite file."""
    command = [
        *(str(_NEXUS_GATEWAY), "serve"),
        *("benchmarks.bench_service:services", "--port", "0", "--allow-private-callbacks"),
        *("--database", database or f"sqlite:///{folder / 'gateway.db'}"),
    ]
    return Server(name, command, folder, environment or {})


def migrate(database: str) -> None:
    """Give an empty database the gateway's schema.

    Raises:
        ServerNotStarted: It cannot be done; the message has what the command wrote.
    """
    command = [str(_NEXUS_GATEWAY), "database", "migrate", "--database", database]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerNotStarted(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def child_figures(module: str, *arguments: str, timeout_seconds: float) -> dict[str, Any]:
    """Measure in a process of its own, and return the figures that it printed last.

    Raises:
        ServerNotStarted: It failed, and the message has what it wrote, or it took too long.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerNotStarted(f"{module} did not end within {timeout_seconds:g} s") from error
    if done.returncode != 0:
        raise ServerNotStarted(f"{module} (exit code {done.returncode}):\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def database_counters(server: Server) -> tuple[float, float]:
    """Return how many transactions and writes the gateway has committed, from `/metrics`."""
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=10) as response:  # noqa: S310  # our own
        text = response.read().decode()
    return _counter(text, "nexus_database_commits"), _counter(text, "nexus_database_writes")


def _counter(metrics: str, name: str) -> float:
    match = re.search(rf"^{name}_total (\S+)$", metrics, re.MULTILINE)
    if match is None:
        raise ValueError(f"/metrics has no {name}_total")
    return float(match[1])
