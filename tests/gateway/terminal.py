"""A command as a person runs it: in a terminal."""

import os
import pty
import re
import select
import subprocess
import time
from typing import Self

from tests.gateway.commands import environment
from tests.support.gateway_process import COMMAND


class Terminal:
    """A command with a terminal as its standard error and input, and a pipe for its result."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            # Tests that run in the background ignore Ctrl-C, and so would what they start.
            ["env", "--default-signal=INT", COMMAND, *arguments],
            env=environment({"TERM": "xterm", "COLUMNS": "120"}),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, pattern: str) -> None:
        """Read what is shown until a pattern is."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.shown):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, self.shown
            self.shown += os.read(self._master, 4096).decode()

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._master)
