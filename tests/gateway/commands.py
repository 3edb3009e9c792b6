"""Runs `nexus-gateway`: as the real command in a process of its own, or inside this one.

A process takes a second, so it is for what only a process shows: signals, terminals, exit codes
beside another gateway. What is only read and printed runs here, through the same `main`.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli import main
from tests.support.gateway_process import COMMAND

TIMEOUT_SECONDS = 40


@dataclass(frozen=True)
class Finished:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def one_error(self) -> str:
        """Return the only line on standard error of a command that could not be done."""
        assert self.code == 1, self
        assert not self.out, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of a gateway."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEXUS_GATEWAY_", "OTEL_"))}
    return {**kept, "COLUMNS": "200", **(changes or {})}


def run(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Finished:
    """Run the real command to its end."""
    done = subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_here(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Finished:
    """Run a command inside this process."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    code = ended.value.code
    return Finished(code if isinstance(code, int) else 0, captured.out, captured.err)
