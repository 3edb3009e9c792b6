"""Processes that must not outlive the tests, however those end: also by kill -9.

A server that a test starts notices nothing when the test's own process is gone. A small shell
does: it is told of every such process, and kills what is left when the pipe from here is closed.
"""

import atexit
import functools
import subprocess
from pathlib import Path

# A space around each number, so that one is not taken for the beginning of another.
_WATCH = """
alive=" "
while read -r what pid; do
  case "$what" in
    started) alive="$alive$pid " ;;
    ended) case "$alive" in *" $pid "*) alive="${alive%% $pid *} ${alive#* $pid }" ;; esac ;;
  esac
done
[ "$alive" = " " ] || kill -9 $alive 2>&-
"""


def kill_if_orphaned(pid: int) -> None:
    """Have a child process killed when this process is gone before it."""
    _tell(f"started {pid}\n")


def forget_child(pid: int) -> None:
    """Take note that a child has ended: its number may soon be another's."""
    _tell(f"ended {pid}\n")


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tell(line: str) -> None:
    shell = _shell()
    assert shell.stdin is not None
    shell.stdin.write(line.encode())


@functools.cache
def _shell() -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C is meant for the tests, and what they leave is still killed.
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    atexit.register(_let_go, shell)
    return shell


def _let_go(shell: "subprocess.Popen[bytes]") -> None:
    assert shell.stdin is not None
    shell.stdin.close()
    shell.wait()
