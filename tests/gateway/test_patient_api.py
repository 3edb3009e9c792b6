"""Requests of commands to a gateway that is away for a while."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from gateway.commands.api import ApiCallFailed, GatewayAway, PatientApi
from tests.gateway.commands import environment
from tests.support.gateway_process import COMMAND

CONFLICT = (
    b'{"message": "it is due", "metadata": {"type": "nexus.HandlerError"}, '
    b'"details": {"type": "CONFLICT"}}'
)
HANG_UP = None


class Server:
    """Answers connections one after the other, each as the script says; refuses all further ones.

    An answer is a status and a body; None reads the request and hangs up.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._thread: threading.Thread | None = None
        self.listen(0)

    def listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self, *script: tuple[int, bytes] | None) -> None:
        self._thread = threading.Thread(target=self._run, args=(script,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self, script: tuple[tuple[int, bytes] | None, ...]) -> None:
        for answer in script:
            connection, _ = self._listener.accept()
            with connection:
                head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(65536)
                self.bodies.append(body)
                if answer is not None:
                    status, document = answer
                    connection.sendall(
                        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
                        % (status, len(document), document)
                    )
        self._listener.close()


@dataclass
class Clock:
    """Time that passes only while somebody sleeps."""

    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.seconds += seconds


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@dataclass
class Patient:
    api: PatientApi
    clock: Clock
    told: list[str]


@pytest.fixture
def patient(server: Server) -> Patient:
    clock, told = Clock(), list[str]()
    api = PatientApi(
        server.url, None, 10.0, told=told.append, monotonic=clock.monotonic, sleep=clock.sleep
    )
    return Patient(api, clock, told)


def test_what_is_away_is_asked_again_and_told_of_once(server: Server, patient: Patient) -> None:
    server.serve(
        (200, b'{"n": 1}'), HANG_UP, (503, b""), HANG_UP, (200, b'{"n": 2}'), (200, b'{"n": 3}')
    )
    assert patient.api.post("/x", {"a": 1}) == {"n": 1}
    assert patient.told == []
    assert patient.api.post("/x", {"a": 2}) == {"n": 2}
    assert patient.api.post("/x", {"a": 3}) == {"n": 3}
    assert patient.clock.slept == [0.2, 0.4, 0.8]
    [away, back] = patient.told
    assert away.startswith(f"waiting for the gateway: cannot reach the gateway at {server.url}: ")
    assert back == "the gateway answers again"
    assert server.bodies == [b'{"a": 1}', *[b'{"a": 2}'] * 4, b'{"a": 3}']


def test_patience_ends(server: Server, patient: Patient) -> None:
    server.serve((200, b"{}"))
    patient.api.post("/x", {})
    with pytest.raises(GatewayAway, match="cannot reach the gateway"):
        patient.api.post("/x", {})
    assert patient.clock.slept == [0.2, 0.4, 0.8, 1.6, 3.2, 3.8]
    assert patient.clock.seconds == pytest.approx(10.0)


def test_what_was_done_although_its_answer_was_lost_is_done(
    server: Server, patient: Patient
) -> None:
    server.serve((200, b"{}"), HANG_UP, (409, CONFLICT), (503, b""), (409, CONFLICT))
    patient.api.post("/x", {})
    assert patient.api.post("/x", {}, when_repeated=409) == {}
    assert patient.api.post("/x", {}, when_repeated=409) == {}


def test_what_is_refused_is_refused_at_once(server: Server, patient: Patient) -> None:
    server.serve((200, b"{}"), (409, CONFLICT), HANG_UP, (409, CONFLICT), (500, b""))
    patient.api.post("/x", {})
    for _ in range(2):
        with pytest.raises(ApiCallFailed, match=r"^it is due \(409\)$"):
            patient.api.post("/x", {})
    with pytest.raises(ApiCallFailed, match="answered 500: is it a gateway"):
        patient.api.post("/x", {})
    assert patient.clock.slept == [0.2]


def test_a_conflict_after_a_request_that_was_never_sent_is_one(server: Server) -> None:
    server.serve((200, b"{}"))

    def listen_again(seconds: float) -> None:
        server.listen(int(server.url.rpartition(":")[2]))
        server.serve((409, CONFLICT))

    api = PatientApi(server.url, None, 10.0, told=lambda _: None, sleep=listen_again)
    api.post("/x", {})
    server.close()
    with pytest.raises(ApiCallFailed, match=r"^it is due \(409\)$"):
        api.post("/x", {}, when_repeated=409)
    assert len(server.bodies) == 2


# ---------------------------------------------------------------- of `callbacks replay`


def replay(server: Server, *options: str) -> "subprocess.Popen[str]":
    """Begin to replay five completions; the gateway does two of them and is gone."""
    as_of = "2026-11-26T08:00:00.000Z"
    answers = ({"matching": 5, "as_of": as_of}, {"replayed": 2, "remaining": 3, "as_of": as_of})
    server.serve(*((200, json.dumps(answer).encode()) for answer in answers))
    return subprocess.Popen(
        [COMMAND, "callbacks", "replay", "--all", "--yes", "--url", server.url, *options],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_gives_up_one_day_and_says_how_far_it_came(server: Server) -> None:
    out, err = (command := replay(server, "--patience", "0.3s")).communicate(timeout=30)
    assert (command.returncode, out) == (1, "")
    [away, error] = err.splitlines()
    assert away.startswith("waiting for the gateway: cannot reach the gateway at ")
    said = "error: replayed 2 of 5, and the same command goes on with the rest: cannot reach the "
    assert error.startswith(said)
    asked = [json.loads(body) for body in server.bodies]
    assert asked == [
        {"all": True, "dry_run": True},
        {"all": True, "as_of": "2026-11-26T08:00:00.000Z", "limit": 500},
    ]


def test_an_interrupted_command_says_how_far_it_came(server: Server) -> None:
    command = replay(server)
    assert command.stderr is not None
    assert command.stderr.readline().startswith("waiting for the gateway: ")
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (130, "")
    said = "interrupted: replayed 2 of 5, and the same command goes on with the rest\n"
    # Interrupted while it prints, it may print that line again.
    assert err.splitlines(keepends=True)[-1] == said
