import json
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.commands import Finished, run_here
from tests.gateway.services import TARGET
from tests.support.gateway_process import GatewayProcess


class Operations:
    """The command `operations`, on the lab's gateway."""

    def __init__(self, capfd: pytest.CaptureFixture[str], lab: GatewayProcess) -> None:
        self._capfd = capfd
        self.url = lab.base_url

    def __call__(self, *arguments: str) -> Finished:
        return run_here(self._capfd, "operations", *arguments, "--url", self.url)

    def start(self, operation: str, value: object) -> str:
        """Start an operation and return its token."""
        answer = httpx.post(f"{self.url}/services/lab/{operation}", json=value)
        return str(answer.json()["token"])


@pytest.fixture
def operations(capfd: pytest.CaptureFixture[str], lab: GatewayProcess) -> Operations:
    return Operations(capfd, lab)


def test_the_list_has_whole_tokens_and_progress(operations: Operations) -> None:
    token = operations.start("nap", 60)
    deadline = time.monotonic() + 10
    row = ""
    while "%" not in row:  # progress is written a little later than it is told
        assert time.monotonic() < deadline
        done = operations("list", "--service", "lab", "--operation", "nap", "--limit", "1")
        assert done.code == 0
        [_, row] = done.out.splitlines()
    cells = row.split()
    assert cells[:3] == [token, "lab/nap", "ready"] or cells[:3] == [token, "lab/nap", "running"]
    assert row.rstrip().endswith("50% half [/asleep]")


def test_what_a_program_reads_is_json(operations: Operations) -> None:
    token = operations.start("nap", 60)
    listed = json.loads(operations("list", "--json", "--limit", "1").out)
    assert [row["token"] for row in listed["operations"]] == [token]
    shown = json.loads(operations("show", token, "--json").out)
    assert shown["token"] == token
    assert json.loads(operations("list", "--json", "--state", "paused").out)["operations"] == []


def test_an_operation_is_shown_whole(operations: Operations) -> None:
    token = operations.start("two_steps", 0)
    httpx.get(
        f"{operations.url}/services/lab/two_steps/result",
        params={"wait": "10s"},
        headers={"nexus-operation-token": token},
    )
    lines = operations("show", token).out.splitlines()
    assert f"token: {token}" in lines
    assert "state: succeeded" in lines
    assert 'output: {"content_type": "application/json", "json": "done"}' in lines
    steps = [line.split()[0] for line in lines if "#1" in line]
    assert steps == ["first#1", "sleep#1", "second#1"]


def test_a_running_operation_is_canceled(operations: Operations) -> None:
    token = operations.start("nap", 60)
    assert operations("cancel", token).out == "cancel requested\n"
    answer = httpx.get(
        f"{operations.url}/services/lab/nap/result",
        params={"wait": "10s"},
        headers={"nexus-operation-token": token},
    )
    assert answer.headers["nexus-operation-state"] == "canceled"


def test_only_a_paused_operation_is_resumed(operations: Operations) -> None:
    token = operations.start("nap", 60)
    assert operations("resume", token).one_error().endswith("not paused (409)")


@pytest.mark.parametrize("token", ["nosuch", "../services", "a/b", "ä"])
def test_an_unknown_token_is_one_line(token: str, operations: Operations) -> None:
    for verb in ("show", "cancel", "resume"):
        assert operations(verb, token).one_error().endswith("(404)")


@pytest.mark.parametrize("options", [["--state", "asleep"], ["--limit", "0"], ["--limit", "1001"]])
def test_what_cannot_be_asked_is_one_line(options: list[str], operations: Operations) -> None:
    assert operations("list", *options).one_error().endswith("(400)")


def test_no_gateway_is_one_line(operations: Operations) -> None:
    for url in ("http://127.0.0.1:1", "no url", "http://[::1"):
        operations.url = url
        said = operations("list").one_error()
        assert said.startswith(f"cannot reach the gateway at {url}: ")
    operations.url = "http://127.0.0.1:1"
    assert "API key has characters" in operations("list", "--api-key", "ä").one_error()


def test_something_else_than_a_gateway_is_one_line(
    operations: Operations, lab: GatewayProcess
) -> None:
    operations.url = f"{lab.base_url}/openapi.yaml?"
    assert operations("list").one_error().endswith("answered 200: is it a gateway?")


def test_a_wrong_key_is_one_line(operations: Operations) -> None:
    said = operations("list", "--api-key", "nxk_wrong").one_error()
    assert said == "the API key is unknown or revoked (401)"


def test_the_contract_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_here(capfd, "openapi")
    assert yaml.safe_load(done.out)["openapi"].startswith("3.1")
    done = run_here(capfd, "openapi", "lab", "--target", TARGET)
    paths = json.loads(done.out)["paths"]
    assert "/services/lab/nap" in paths
    done = run_here(capfd, "openapi", "--target", TARGET)
    assert json.loads(done.out)["paths"].keys() == paths.keys()
    said = run_here(capfd, "openapi", "nosuch", "--target", TARGET).one_error()
    assert said.startswith("there is no service 'nosuch'; name what serves it with --target")
