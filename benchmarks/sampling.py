"""Where the gateway's time goes: py-spy's samples, added up by concern."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SAMPLES_PER_SECOND = 100
WAITING = "waiting for requests"

# Looked for from the innermost frame outwards; libraries that everybody uses are not named, so
# that their time is their caller's.
_CONCERNS = (
    ("request parsing, specification", r"nexus_spec/|gateway/request_parsing\.py|^Registration\."),
    ("database", r"callbacks/database/|callbacks/outbox\.py|handlers/store/"),
    ("engine and handler", r"handlers/|benchmarks/"),
    ("HTTP server, Starlette, routes", r"uvicorn/|starlette/|gateway/"),
    # Not these two: they serve the parsing of requests as well.
    ("delivery, aiohttp", r"callbacks/(?!egress|header_rules)|aiohttp/|yarl/|clients/"),
)
_PATTERNS = [(name, re.compile(pattern)) for name, pattern in _CONCERNS]
_COLLECTOR = re.compile(r"^_?gc_collect")
_EVENT_LOOP = re.compile(r"asyncio/runners\.py")


@dataclass(frozen=True)
class Sampled:
    """Percentages by concern, the largest first; or why there are none."""

    shares: dict[str, float]
    problem: str | None = None


class Sampler:
    """Samples a process from now on, for some seconds; `result` waits for the end."""

    def __init__(self, pid: int, seconds: float, folder: Path) -> None:
        self._output = folder / "samples.raw"
        self._process: subprocess.Popen[str] | None = None
        command = shutil.which("py-spy", path=str(Path(sys.executable).parent))
        if command is None:
            return
        self._process = subprocess.Popen(
            # Native frames tell the fsync, the collector and waiting from Python code.
            [
                *(command, "record", "--native", "--idle", "--format", "raw"),
                *("--rate", str(_SAMPLES_PER_SECOND), "--duration", str(max(1, round(seconds)))),
                *("--output", str(self._output), "--pid", str(pid)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Sampled:
        """Return what was sampled."""
        if self._process is None:
            return Sampled({}, "py-spy is not installed")
        _, errors = self._process.communicate(timeout=120)
        if self._process.returncode != 0 or not self._output.exists():
            lines = errors.strip().splitlines() or [f"exit code {self._process.returncode}"]
            return Sampled({}, f"py-spy: {lines[0]}")
        return Sampled(shares(self._output.read_text(errors="replace").splitlines()))


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Add up collapsed stacks (`outer;...;inner count`) of the event loop's thread."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if any(_EVENT_LOOP.search(frame) for frame in frames):
            counts[_concern(frames)] += int(count)
    total = counts.total()
    return {name: 100 * count / total for name, count in counts.most_common()}


def _concern(frames: list[str]) -> str:
    if frames[-1].startswith("epoll_"):
        return WAITING
    if frames[-1].startswith(("fdatasync", "fsync")):
        return "database: fsync"
    if any(_COLLECTOR.match(frame) for frame in frames):
        return "garbage collector"
    for frame in reversed(frames):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return name
        if _EVENT_LOOP.search(frame):
            break  # further out is only what started the server
    return "event loop"
