"""What keeps the tests from leaving processes behind is noticed only when it does not work."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.eventually import eventually
from tests.support.gateway_process import REPOSITORY
from tests.support.orphans import is_running

# Starts three processes and dies: one is watched, one ended before, and one is forgotten.
DIES = """
import os, signal, subprocess
from tests.support.orphans import forget_child, kill_if_orphaned

watched, ended, forgotten = [
    subprocess.Popen(["sleep", seconds], stdout=subprocess.DEVNULL) for seconds in ("60", "0", "60")
]
ended.wait()
for process in (ended, watched, forgotten):
    kill_if_orphaned(process.pid)
for process in (forgotten, ended, ended):
    forget_child(process.pid)
print(watched.pid, forgotten.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.anyio
async def test_what_a_killed_process_started_is_killed() -> None:
    died = subprocess.run(  # noqa: ASYNC221  # there is nothing else to do meanwhile
        [sys.executable, "-c", DIES], stdout=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY
    )
    assert died.returncode == -signal.SIGKILL
    watched, forgotten = map(int, died.stdout.split())

    async def is_gone() -> bool | None:
        return not is_running(watched) or None

    try:
        await eventually(is_gone)
        assert is_running(forgotten)
    finally:
        os.kill(forgotten, signal.SIGKILL)
