import json
import os
import pty
import re
import select
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from gateway.commands.calling import (
    EXIT_CANCELED,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_STILL_RUNNING,
    EXIT_UNREACHABLE,
)
from tests.gateway.commands import Finished, environment, run, run_here
from tests.support.gateway_process import COMMAND, GatewayProcess

TOKEN = re.compile(r"token [A-Za-z0-9_-]{20,}")


class Call:
    """The command `call`, on the lab's service."""

    def __init__(self, capfd: pytest.CaptureFixture[str], lab: GatewayProcess) -> None:
        self._capfd = capfd
        self.endpoint = f"{lab.base_url}/services"

    def __call__(self, operation: str, *options: str) -> Finished:
        return run_here(
            self._capfd, "call", "lab", operation, "--endpoint", self.endpoint, *options
        )


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], lab: GatewayProcess) -> Call:
    return Call(capfd, lab)


def test_a_result_is_alone_on_standard_output(call: Call) -> None:
    done = call("echo", "--input", '{"ä": [1, null]}')
    assert (done.code, done.out, done.err) == (0, '{"ä":[1,null]}\n', "")


def test_the_token_of_what_is_waited_for_is_on_standard_error(call: Call) -> None:
    done = call("nap", "--input", "0.05")
    assert (done.code, done.out) == (0, '"rested"\n')
    assert TOKEN.fullmatch(done.err.strip())


@pytest.mark.parametrize("text", ["1234567890123456789", "[ 1.25, 1e300 ]", '"\\u00e4"'])
def test_the_input_is_what_was_written(text: str, call: Call) -> None:
    assert json.loads(call("echo", "--input", text).out) == json.loads(text)


def test_no_input_and_no_result_are_null(call: Call) -> None:
    assert call("echo").out == "null\n"
    assert call("end", "--input", '"null"').out == "null\n"


def test_a_result_of_bytes_is_those_bytes(call: Call) -> None:
    done = subprocess.run(
        [COMMAND, "call", "lab", "end", "--input", '"bytes"', "--endpoint", call.endpoint],
        env=environment(),
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == b"\x00\xff"


def test_the_input_may_be_in_a_file_or_on_standard_input(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"from": "a file ä"}\n', encoding="utf-8")
    assert call("echo", "--input-file", str(file)).out == '{"from":"a file ä"}\n'
    done = run(
        *("call", "lab", "echo", "--input-file", "-"),
        cwd=tmp_path,
        env={"NEXUS_GATEWAY_ENDPOINT": call.endpoint},
        stdin='["piped"]',
    )
    assert (done.code, done.out) == (0, '["piped"]\n')


def test_what_the_operation_ended_with_is_the_exit_code(call: Call) -> None:
    for state, code in (("failed", EXIT_FAILED), ("canceled", EXIT_CANCELED)):
        done = call("end", "--input", json.dumps(state))
        assert (done.code, done.out) == (code, "")
        assert done.err.splitlines()[-1] == f"{state}: no [/luck]"


@pytest.mark.parametrize(
    ("operation", "options", "said"),
    [
        ("nosuch", [], "refused (NOT_FOUND): service 'lab' has no operation 'nosuch'"),
        ("nap", ["--input", '"long"'], "refused (BAD_REQUEST): the body does not fit float"),
        ("echo", ["--api-key", "nxk_wrong"], "refused (UNAUTHENTICATED): the API key is unknown"),
    ],
)
def test_a_refused_request_is_3(operation: str, options: list[str], said: str, call: Call) -> None:
    done = call(operation, *options)
    assert (done.code, done.out) == (EXIT_REFUSED, "")
    assert done.err.startswith(said)


def test_what_still_runs_is_6_with_its_token(call: Call) -> None:
    done = call("nap", "--input", "60", "--wait", "50ms")
    assert (done.code, done.out) == (EXIT_STILL_RUNNING, "")
    token, said = done.err.splitlines()
    assert TOKEN.fullmatch(token)
    assert said == "still running: not ended within 50ms"


def test_a_request_id_finds_the_same_operation_again(call: Call) -> None:
    request_id = str(uuid.uuid4())
    first = call("nap", "--input", "0.3", "--wait", "1ms", "--request-id", request_id)
    assert first.code == EXIT_STILL_RUNNING
    again = call("nap", "--input", "0.3", "--request-id", request_id)
    assert again.code == 0
    if again.err:  # else it had ended meanwhile, and was answered at once
        assert again.err.split()[1] == first.err.split()[1]
    other = call("nap", "--input", "0.4", "--request-id", request_id)
    assert other.code == EXIT_REFUSED
    assert "CONFLICT" in other.err


def test_nobody_there_is_7_and_soon(call: Call) -> None:
    call.endpoint = "http://127.0.0.1:1/services"
    began = time.monotonic()
    done = call("echo")
    assert time.monotonic() - began < 5
    assert (done.code, done.out) == (EXIT_UNREACHABLE, "")
    assert done.err.startswith("cannot reach http://127.0.0.1:1/services: ")
    assert len(done.err.splitlines()) == 1


def test_what_is_no_endpoint_is_told(call: Call, lab: GatewayProcess) -> None:
    call.endpoint = f"{lab.base_url}/healthz"
    done = call("echo")
    assert (done.code, done.out) == (EXIT_REFUSED, "")
    assert "there is nothing at '/healthz/lab/echo'" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input", "{"], "not JSON"),
        (["--input", ""], "not JSON"),
        (["--input", "NaN"], "NaN is no JSON value"),
        (["--input", "[" * 100_000], "not JSON"),
        (["--input", "1", "--input-file", "-"], "not both"),
        (["--input-file", "/nonexistent"], "No such file"),
        (["--input-file", "/proc/self/exe"], "not text in UTF-8"),
        (["--wait", "5"], "expected a number and a unit"),
        (["--wait", "-1s"], "invalid duration"),
        (["--endpoint", "localhost:8080"], "an endpoint is an http or https URL"),
        (["--api-key", "ä"], "characters that a header cannot carry"),
        (["--request-id", "a\nb"], ""),
    ],
)
def test_wrong_usage_is_2(options: list[str], said: str, call: Call) -> None:
    done = call("echo", *options)
    assert (done.code, done.out) == (2, "")
    assert "Usage: " in done.err
    assert said in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize("names", [(".", "echo"), ("lab", ".."), ("", "echo")])
def test_names_that_no_url_can_carry_are_wrong_usage(
    names: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here(capfd, "call", *names).code == 2


class Terminal:
    """A command with a terminal as its standard error and input, and a pipe for its result."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        # Tests that run in the background ignore Ctrl-C, and so would what they start.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [COMMAND, *arguments],
                env=environment({"TERM": "xterm", "COLUMNS": "120"}),
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        os.close(slave)
        self.shown = ""

    def wait_for(self, pattern: str) -> None:
        """Read what is shown until a pattern is."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.shown):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, self.shown
            self.shown += os.read(self._master, 4096).decode()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._master)


def test_a_terminal_shows_the_progress_while_it_waits(lab: GatewayProcess) -> None:
    with Terminal(
        *("call", "lab", "nap", "--input", "60", "--endpoint", f"{lab.base_url}/services")
    ) as terminal:
        terminal.wait_for(TOKEN.pattern)
        terminal.wait_for(r"lab/nap: (ready|running) 50% half \[/asleep\] 0:00:\d\d")
        assert terminal.process.stdout is not None
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.stdout.read() == b""
        assert terminal.process.wait(20) == EXIT_INTERRUPTED


def test_without_a_terminal_there_are_no_escape_codes(call: Call) -> None:
    assert "\x1b" not in call("nap", "--input", "0.01").err
