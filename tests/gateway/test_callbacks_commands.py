"""`callbacks` and `destinations`: the commands, on a gateway of their own."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.commands import Finished, run_here
from tests.gateway.dead_letters import write_dead_letters
from tests.gateway.desk import Desk, open_desk_on
from tests.gateway.terminal import Terminal
from tests.support.callback_receiver import Answer, CallbackReceiver
from tests.support.eventually import eventually

pytestmark = pytest.mark.anyio


class Commands:
    """The commands, beside the gateway that they call."""

    def __init__(self, capfd: pytest.CaptureFixture[str], desk: Desk) -> None:
        self._capfd = capfd
        self.desk = desk

    async def __call__(self, *arguments: str) -> Finished:
        url = ("--url", self.desk.here.base_url)
        return await asyncio.to_thread(run_here, self._capfd, *arguments, *url)

    async def failed(self) -> list[int]:
        """Return the ids of the dead letters, the oldest first."""
        return [c["id"] for c in reversed(await self.desk.callbacks(state="failed"))]


@pytest.fixture
async def commands(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, receiver: CallbackReceiver
) -> AsyncIterator[Commands]:
    """A gateway with five dead letters of one service and two of another."""
    url = f"sqlite:///{tmp_path}/nexus.db"
    write_dead_letters(url, receiver.url("/a"), 5, service="a")
    write_dead_letters(url, receiver.url("/b"), 2, service="b")
    async with open_desk_on(url, breaker_failures=1) as desk:
        yield Commands(capfd, desk)


def rows(done: Finished) -> list[list[str]]:
    """Return the cells of a table without its head."""
    assert (done.code, done.err) == (0, "")
    return [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines()[1:]]


# ---------------------------------------------------------------- list and show


async def test_the_list(commands: Commands, receiver: CallbackReceiver) -> None:
    found = rows(await commands("callbacks", "list", "--state", "failed", "--service", "b"))
    ids = await commands.failed()
    assert found == [
        [str(id), "b/old", receiver.url(""), "failed", "3", at, "answered 503"]
        for id, at in ((ids[6], "2023-11-14 22:13:20"), (ids[5], "2023-11-14 22:13:20"))
    ]
    assert len(rows(await commands("callbacks", "list", "--limit", "3"))) == 3
    assert len(rows(await commands("callbacks", "list", "--since", "3d"))) == 0
    assert len(rows(await commands("callbacks", "list", "--until", "3d"))) == 7
    done = await commands("callbacks", "list", "--json", "--token", "a-4")
    assert [c["token"] for c in json.loads(done.out)["callbacks"]] == ["a-4"]


async def test_what_is_held_says_by_what(commands: Commands, receiver: CallbackReceiver) -> None:
    done = await commands("destinations", "disable", receiver.url("/any"))
    assert done.out == f"{receiver.url('')} is disabled; deliveries that wait for it: 0\n"
    await commands("callbacks", "replay", "--token", "a-1", "--yes")
    [cells] = rows(await commands("callbacks", "list", "--token", "a-1"))
    assert cells[3] == "due (disabled)"
    [destination] = rows(await commands("destinations", "list"))
    assert destination[:2] == [receiver.url(""), "disabled"]
    assert destination[3:6] == ["1", "0", "6"]
    assert rows(await commands("destinations", "list", "--state", "open")) == []
    done = await commands("destinations", "enable", receiver.url(""))
    assert done.out == f"{receiver.url('')} is enabled; deliveries that waited for it: 1\n"
    await receiver.one("/a/1")
    done = await commands("destinations", "list", "--json")
    assert [d["state"] for d in json.loads(done.out)["destinations"]] == ["sound"]


async def test_one_is_shown_with_its_attempts(
    commands: Commands, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(Answer(400, body=b"[no] luck"))
    token = await commands.desk.start("end", "null", receiver.url(), token="very secret")
    id = str((await commands.desk.of(token, "failed"))["id"])
    done = await commands("callbacks", "show", id)
    lines = done.out.splitlines()
    assert f"token: {token}" in lines
    assert "state: failed" in lines
    assert re.search(r"^ 1 +2\d{3}-\S+ +\d+ +400 +answered 400 +\S+ +\[no\] luck", lines[-1])
    assert "very secret" not in done.out
    shown = json.loads((await commands("callbacks", "show", id, "--json")).out)
    assert [a["response_excerpt"] for a in shown["attempt_log"]] == ["[no] luck"]
    missing = await commands("callbacks", "show", "4711")
    assert missing.one_error() == "no such callback (404)"


# ---------------------------------------------------------------- replay


async def test_by_ids(commands: Commands, receiver: CallbackReceiver) -> None:
    ids = await commands.failed()
    done = await commands("callbacks", "replay", str(ids[0]), str(ids[6]))
    assert (done.code, done.out, done.err) == (0, "replayed 2\n", "")
    assert {r.path for r in await receiver.received(2)} == {"/a/1", "/b/2"}
    await commands.desk.post("destinations/disable", {"destination": receiver.url("")})
    done = await commands("callbacks", "replay", str(ids[1]), "4711", str(ids[1]))
    assert (done.code, done.out) == (1, "replayed 1\n")
    [unknown, due] = done.err.splitlines()
    assert unknown == "error: 4711: no such callback (404)"
    assert due.startswith(f"error: {ids[1]}: it is not given up: it waits until http")


async def test_by_a_filter(commands: Commands, receiver: CallbackReceiver) -> None:
    counted = await commands("callbacks", "replay", "--service", "a", "--dry-run")
    assert (counted.code, counted.out, counted.err) == (0, "5 would be replayed\n", "")
    done = await commands("callbacks", "replay", "--service", "a", "--yes", "--batch", "2")
    assert (done.code, done.out, done.err) == (0, "replayed 5\n", "")
    assert {r.path for r in await receiver.received(5)} == {f"/a/{n}" for n in range(1, 6)}
    done = await commands("callbacks", "replay", "--service", "a", "--yes")
    assert (done.code, done.out) == (0, "replayed 0\n")
    done = await commands("callbacks", "replay", "--all", "-y")
    assert (done.code, done.out) == (0, "replayed 2\n")


async def test_what_is_given_up_again_is_not_replayed_again(
    commands: Commands, receiver: CallbackReceiver
) -> None:
    receiver.will_answer(*[400] * 100)
    done = await commands("callbacks", "replay", "--all", "--yes", "--batch", "1")
    assert (done.code, done.out) == (0, "replayed 7\n")
    await receiver.received(7)

    async def all_failed() -> bool | None:
        return len(await commands.failed()) == 7 or None

    await eventually(all_failed)
    assert len(receiver.requests) == 7


async def test_nothing_is_replayed_unasked(commands: Commands) -> None:
    done = await commands("callbacks", "replay", "--all")
    said = "error: 7 would be replayed; without a terminal to ask, say --yes\n"
    assert (done.code, done.out, done.err) == (2, "", said)
    assert len(await commands.failed()) == 7


@pytest.mark.parametrize(
    ("typed", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 7), ("\n", 1, 7), ("\4", 1, 7)]
)
async def test_a_terminal_is_asked_and_shows_progress(
    typed: str, code: int, left: int, commands: Commands
) -> None:
    def answer() -> tuple[int, str]:
        url = ("--url", commands.desk.here.base_url)
        with Terminal("callbacks", "replay", "--all", *url) as terminal:
            terminal.wait_for(r"Replay 7\? .*\[y/n\].*:")
            terminal.type(typed)
            if code == 0:
                terminal.wait_for(r"(?s)replaying.*7/7")
            assert terminal.process.stdout is not None
            return terminal.process.wait(30), terminal.process.stdout.read().decode()

    assert await asyncio.to_thread(answer) == (code, "" if code else "replayed 7\n")
    assert len(await commands.failed()) == left


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give ids, or a filter such as --destination, or --all"),
        (["--all", "--service", "a"], "give ids, or a filter such as --destination, or --all"),
        (["1", "--all"], "give ids, or a filter such as --destination, or --all"),
        (["1", "--dry-run"], "--dry-run counts what a filter finds"),
        (["--since", "yesterday"], "'yesterday' is no time: say for example 2026-11-22T"),
        (["--since", "999999999d"], "'999999999d' is no time"),
        (["--all", "--patience", "5"], "'5' is no duration: say for example 90s, 30m, 2h or 3d"),
        (["--all", "--batch", "5001"], "'--batch': Input should be less than or equal to 5000"),
        (["0"], "'ID': Input should be greater than or equal to 1"),
    ],
)
def test_wrong_usage(
    options: list[str],
    said: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = run_here(capfd, "callbacks", "replay", *options, "--url", "http://127.0.0.1:1")
    assert done.code == 2
    assert said in done.err


def test_a_gateway_that_never_answered_is_not_waited_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for what in (["--all", "--yes"], ["--all", "--dry-run"], ["1"]):
        done = run_here(capfd, "callbacks", "replay", *what, "--url", "http://127.0.0.1:1")
        assert done.one_error().startswith("cannot reach the gateway at http://127.0.0.1:1: ")


async def test_a_destination_is_a_url(commands: Commands) -> None:
    for verb in ("disable", "enable"):
        done = await commands("destinations", verb, "caller.example")
        said = "destination: must begin with http:// or https:// (400)"
        assert done.one_error() == said
