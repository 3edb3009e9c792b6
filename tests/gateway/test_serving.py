import json
import logging
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.schema import migrate
from gateway.server import check_bind
from gateway.settings import InvalidSettings, Settings
from tests.gateway.commands import run_here
from tests.gateway.services import TARGET
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import COMMAND, GatewayProcess

pytestmark = pytest.mark.anyio


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def refused(folder: Path, capfd: pytest.CaptureFixture[str], logs_as_before: None) -> "Refused":
    return Refused(capfd)


class Refused:
    """What `serve` says when it does not serve."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *options: str, target: str = TARGET) -> str:
        return run_here(self._capfd, "serve", target, "--port", "0", *options).one_error()


def test_it_says_where_it_listens_and_ends_with_0_on_sigterm(
    refused: Refused, folder: Path
) -> None:
    database = folder / "deep" / "nexus.db"
    with GatewayProcess.start(TARGET, database, cwd=folder) as process:
        assert f"listening on {process.base_url}\n" in process.log()
        assert httpx.get(f"{process.base_url}/healthz").text == "ok\n"
        assert refused("--database", f"sqlite:///{database}") == (
            f"{database} is served by another gateway; stop it first, or give this one its own "
            "file with --database sqlite:///OTHER_PATH"
        )
        assert refused("--port", str(process.port)) == (
            f"cannot listen on 127.0.0.1:{process.port}: Address already in use"
        )
        assert not (folder / "data").exists()
        assert httpx.get(f"{process.base_url}/readyz").text == "ready\n"
        assert process.terminate() == 0
    assert "Traceback" not in process.log()


@pytest.mark.parametrize("asked", [True, False])
def test_it_says_which_proxy_callbacks_go_through(folder: Path, asked: bool) -> None:
    env = {
        "https_proxy": "http://agent:s3cret@proxy.example:3128",
        "NEXUS_GATEWAY_CALLBACKS__PROXY_FROM_ENVIRONMENT": str(asked).lower(),
    }
    with GatewayProcess.start(TARGET, folder / "nexus.db", cwd=folder, env=env) as process:
        log = process.log()
    assert ("callbacks go through a proxy" in log) is asked
    assert ("http://proxy.example:3128" in log) is asked
    assert "s3cret" not in log


async def test_json_logs_are_json_line_by_line_and_hold_no_secrets(
    tmp_path: Path, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(500, 200)
    process = GatewayProcess.start(
        TARGET,
        tmp_path / "nexus.db",
        "--log-format",
        "json",
        "--allow-private-callbacks",
        env={"NEXUS_GATEWAY_LOG_LEVEL": "debug", "NEXUS_GATEWAY_PROT": "1"},
    )
    with process:
        async with httpx.AsyncClient(base_url=process.base_url) as http:
            started = await http.post(
                "/services/lab/two_steps",
                params={"callback": receiver.url("/done?signature=query-secret")},
                headers={
                    "nexus-callback-authorization": "Bearer callback-secret",
                    "x-own": "own-secret",
                },
                json=0,
            )
            assert started.status_code == 201
            refused = await http.post(
                "/services/lab/echo", headers={"authorization": "Bearer nxk_key-secret"}
            )
            assert refused.status_code == 401
            await http.post("/services/lab/end", json="failed")
        assert (await receiver.received(2))[1].get("authorization") == "Bearer callback-secret"
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(20) == 0
    documents = [json.loads(line) for line in process.log().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(d) for d in documents)
    by_message = {d["message"]: d for d in documents}
    assert f"listening on {process.base_url}" in by_message
    assert by_message["the first step"]["logger"].startswith("nexus_target_services")
    retried = by_message["completion not delivered, will be retried"]
    assert retried["token"] == started.json()["token"]
    assert "NEXUS_GATEWAY_PROT" in process.log()
    assert "secret" not in process.log()


def test_a_gateway_that_others_can_reach_needs_keys_or_says_so(tmp_path: Path) -> None:
    database = tmp_path / "nexus.db"
    open_to_all = ("--host", "0.0.0.0", "--allow-unauthenticated")
    with GatewayProcess.start(TARGET, database, *open_to_all) as process:
        assert process.base_url == f"http://0.0.0.0:{process.port}"
        answer = httpx.post(f"http://127.0.0.1:{process.port}/services/lab/echo", json=1)
        assert answer.json() == 1
    assert process.process.returncode == 0


def test_other_addresses_are_refused_without_keys(refused: Refused, folder: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        said = refused("--host", host)
        assert said.startswith(f"--host {host} can be reached by others and there is no API key")
        assert "--allow-unauthenticated" in said
    # To refuse, nothing was made, and nothing that another version serves was migrated.
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bind(Settings(host=host), has_keys=False)
    with pytest.raises(InvalidSettings):
        check_bind(Settings(host=f"x{host}"), has_keys=False)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
        ("nosuch.invalid", "cannot listen on nosuch.invalid:0: "),
        ("a..b", "cannot listen on 'a..b': that is no host name"),
    ],
)
def test_an_address_that_is_not_this_machines_is_refused(
    host: str, said: str, refused: Refused
) -> None:
    assert refused("--host", host, "--allow-unauthenticated").startswith(said)


def test_an_option_out_of_range_is_refused(refused: Refused) -> None:
    assert refused("--log-format", "xml") == "log_format: Input should be 'text' or 'json'"


def test_nothing_to_serve_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], logs_as_before: None
) -> None:
    said = run_here(capfd, "serve").one_error()
    assert said == "there is nothing to serve: name a TARGET, such as my_services:services"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nexus:secret@127.0.0.1:1/nexus", "cannot connect to PostgreSQL at 127."),
        ("postgres://nexus:secret@127.0.0.1:x/nexus", "use postgresql://USER:PASSWORD@HOST:PORT/"),
        ("sqlite:///:memory:", "an in-memory database would lose every operation"),
        ("sqlite:///", "an in-memory database would lose every operation"),
        ("sqlite://", "is not a database URL; use sqlite:///"),
        ("nexus.db", "is not a database URL; use sqlite:///"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused(
    url: str, said: str, refused: Refused
) -> None:
    answer = refused("--database", url)
    assert said in answer
    assert "secret" not in answer


def test_a_file_that_is_no_database_is_refused_and_left_alone(
    refused: Refused, folder: Path
) -> None:
    (folder / "notes.txt").write_text("not a database, just notes, and more of them\n" * 50)
    before = (folder / "notes.txt").read_bytes()
    said = refused("--database", "sqlite:///notes.txt")
    assert said == "cannot open the SQLite database notes.txt: file is not a database"
    assert (folder / "notes.txt").read_bytes() == before


def test_a_damaged_database_is_refused(refused: Refused, folder: Path) -> None:
    migrate("sqlite:///nexus.db")
    data = bytearray((folder / "nexus.db").read_bytes())
    data[16:] = os.urandom(len(data) - 16)
    (folder / "nexus.db").write_bytes(data)
    said = refused("--database", "sqlite:///nexus.db")
    assert said.startswith("cannot open the SQLite database nexus.db: ")


def test_a_newer_schema_is_refused(refused: Refused, folder: Path) -> None:
    version = migrate("sqlite:///nexus.db")
    with sqlite3.connect(folder / "nexus.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert refused("--database", "sqlite:///nexus.db") == (
        f"nexus.db has schema version 9999, which is newer than this gateway ({version}); "
        "install the newer nexus-rpc-gateway that wrote it"
    )


def test_a_folder_that_cannot_be_written_is_refused(refused: Refused, folder: Path) -> None:
    (folder / "file").touch()
    (folder / "folder.db").mkdir()
    assert refused("--database", "sqlite:///file/nexus.db").startswith("cannot ")
    assert refused("--database", "sqlite:////proc/nosuch/nexus.db").startswith("cannot ")
    assert refused("--database", "sqlite:///folder.db").startswith("cannot ")


def test_wrong_usage_is_2(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["serve", "--port", "http"], ["serve", "--nosuch"], ["nosuch"]):
        done = run_here(capfd, *arguments)
        assert done.code == 2
        assert not done.out
        assert "Usage: " in done.err


def test_database_migrate_makes_a_database(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        done = run_here(capfd, "database", "migrate", "--database", "sqlite:///a/nexus.db")
        assert done.code == 0
        assert done.out.startswith("a/nexus.db has schema version ")
    with sqlite3.connect(folder / "a/nexus.db") as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert {"operation", "api_key", "alembic_version"} <= tables


@pytest.mark.parametrize("command", [["database", "migrate"], ["keys", "list"]])
def test_commands_on_the_database_say_in_one_line_what_is_wrong_with_it(
    command: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("no database " * 100)
    for url in ("sqlite:///file", "sqlite:///file/nexus.db", "sqlite:////proc/nosuch/x.db"):
        said = run_here(capfd, *command, "--database", url).one_error()
        assert said.startswith(("cannot ", "there is no database "))


def test_help_is_for_people(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["serve"], ["call"], ["keys", "create"], ["operations", "list"]):
        done = run_here(capfd, *command, "--help")
        assert done.code == 0
        assert "Usage: " in done.out


def test_a_step_on_a_thread_that_never_ends_does_not_hold_up_the_exit(folder: Path) -> None:
    (folder / "stuck.py").write_text(
        "import threading\n"
        "from nexusrpc.handler import service_handler\n"
        "from handlers import DurableContext, durable_operation\n"
        "def wait() -> None:\n"
        "    threading.Event().wait()\n"
        "@service_handler(name='stuck')\n"
        "class Stuck:\n"
        "    @durable_operation\n"
        "    async def run(self, ctx: DurableContext, value: None) -> None:\n"
        "        await ctx.step(wait)\n"
        "services = Stuck()\n"
    )
    with GatewayProcess.start(
        "stuck:services",
        folder / "n.db",
        cwd=folder,
        env={"NEXUS_GATEWAY_DRAIN_SECONDS": "0.2"},
    ) as process:
        assert httpx.post(f"{process.base_url}/services/stuck/run").status_code == 201
        assert process.terminate() == 0
    assert "a handler's thread did not end" in process.log()


def test_it_opens_as_many_connections_as_the_system_lets_it(folder: Path) -> None:
    few = ("sh", "-c", 'ulimit -S -n 200; exec "$0" "$@"', str(COMMAND))
    with GatewayProcess.start(TARGET, folder / "nexus.db", cwd=folder, command=few) as process:
        limits = Path(f"/proc/{process.process.pid}/limits").read_text(encoding="ascii")
    found = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert found is not None
    assert int(found[1]) == min(int(found[2]), 65_536)
