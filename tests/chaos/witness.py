"""A record of what really ran, outside of the database: one line for each run of a step.

Each process appends to a file of its own, a line in one write, which no kill tears.
"""

import functools
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = "CHAOS_WITNESS"
"""The environment variable that names the folder of these files."""

_SUFFIX = ".witness"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a step; times are milliseconds since 1970 by this machine's clock."""

    token: str
    label: str
    asked_at: int  # when the handler asked for it
    began_at: int
    pid: int
    nonce: str  # its result


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def testify(token: str, label: str, asked_at: int) -> str:
    """Note that a step begins in this process, and return what tells this run from all others."""
    nonce = secrets.token_hex(6)
    line = f"{token} {label} {asked_at} {now_ms()} {nonce}\n"
    os.write(_file(os.environ[FOLDER]), line.encode())
    return nonce


def runs_in(folder: Path) -> list[Run]:
    """Return what all processes noted, in the order in which it began."""
    runs = []
    for file in folder.glob(f"*{_SUFFIX}"):
        for line in file.read_text().splitlines():
            token, label, asked_at, began_at, nonce = line.split(" ")
            runs.append(Run(token, label, int(asked_at), int(began_at), int(file.stem), nonce))
    return sorted(runs, key=lambda run: run.began_at)


@functools.cache
def _file(folder: str) -> int:
    path = Path(folder, f"{os.getpid()}{_SUFFIX}")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
