import re
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from gateway.access import hash_secret
from gateway.api_keys import ApiKeys, has_valid_key
from gateway.roles import Role
from tests.gateway.commands import Finished, run_here
from tests.gateway.services import TARGET
from tests.support.gateway_process import GatewayProcess

REFUSED_WITHIN_SECONDS = 1.5


class Keys:
    """The command `keys` on one database."""

    def __init__(self, capfd: pytest.CaptureFixture[str], database: Path) -> None:
        self._capfd = capfd
        self.database = database

    def __call__(self, *arguments: str) -> Finished:
        return run_here(self._capfd, "keys", *arguments, "--database", f"sqlite:///{self.database}")

    def create(self, *arguments: str) -> tuple[str, str]:
        """Return the id and the secret of a new key."""
        done = self("create", *arguments)
        assert done.code == 0
        return done.err.split()[0], done.out.strip()


@pytest.fixture
def keys(folder: Path, capfd: pytest.CaptureFixture[str]) -> Keys:
    return Keys(capfd, folder / "nexus.db")


def test_a_key_is_shown_once_alone_on_standard_output(keys: Keys) -> None:
    done = keys("create", "billing")
    assert re.fullmatch(r"nxk_[A-Za-z0-9_-]{43}\n", done.out)
    told = rf"key_[0-9a-f]{{12}} for 'billing' may call, in {re.escape(str(keys.database))}; "
    assert re.match(told, done.err)
    listed = keys("list").out
    assert done.out.strip() not in listed
    assert "billing" in listed


def test_only_a_hash_is_stored(keys: Keys) -> None:
    _, secret = keys.create("billing")
    connection = sqlite3.connect(keys.database)
    [(stored,)] = connection.execute("SELECT secret_hash FROM api_key").fetchall()
    connection.close()
    assert stored == hash_secret(secret)
    everything = b"".join(file.read_bytes() for file in keys.database.parent.iterdir())
    assert secret.encode() not in everything
    assert secret.removeprefix("nxk_").encode() not in everything


def test_keys_are_listed_with_their_roles_and_ends(keys: Keys) -> None:
    caller, _ = keys.create("[/bold] caller")
    operator, _ = keys.create("ops", "--role", "operate")
    assert keys("revoke", caller).out == f"{caller} is revoked\n"
    _, first, second = keys("list").out.splitlines()
    assert first.split()[:4] == [caller, "[/bold]", "caller", "call"]
    assert first.count("UTC") == 2
    assert second.split()[:3] == [operator, "ops", "operate"]
    assert second.count("UTC") == 1


def test_a_list_in_a_pipe_is_not_cut_to_the_width_of_a_terminal(keys: Keys) -> None:
    name = "n" * 150
    keys.create(name)
    assert name in keys("list").out


def test_what_cannot_be_done_is_said(keys: Keys) -> None:
    key_id, _ = keys.create("billing")
    assert keys("revoke", key_id).code == 0
    for revoked in (key_id, "key_nosuch"):
        assert keys("revoke", revoked).one_error().startswith(f"there is no valid key '{revoked}'")
    for name in ("", "a\nb", "x" * 201):
        assert "1 to 200 printable" in keys("create", name).one_error()
    assert keys("create", "billing", "--role", "admin").code == 2


def test_whether_there_are_keys_is_seen_without_making_a_database(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "nexus%20.db"
    url = f"sqlite:///{quote(str(path))}"
    assert not has_valid_key(url)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()
    assert not has_valid_key(url)
    path.unlink()
    keys = ApiKeys(url)
    assert not has_valid_key(url)
    key, _ = keys.create("a", Role.CALL)
    assert has_valid_key(url)
    assert keys.revoke(key.id)
    assert not has_valid_key(url)


def test_keys_change_what_a_running_gateway_lets_in(keys: Keys) -> None:
    first, first_secret = keys.create("billing")
    with GatewayProcess.start(TARGET, keys.database, "--host", "0.0.0.0") as process:
        base_url = f"http://127.0.0.1:{process.port}"

        def status(path: str, secret: str | None, method: str = "GET") -> int:
            headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
            return httpx.request(method, base_url + path, headers=headers).status_code

        echo = "/services/lab/echo"
        assert status(echo, None, "POST") == 401
        assert status(echo, first_secret, "POST") == 200
        assert status("/api/v1/operations", first_secret) == 403
        assert status("/metrics", first_secret) == 403

        operator_key, operator = keys.create("ops", "--role", "operate")
        assert status("/api/v1/operations", operator) == 200
        assert status("/metrics", operator) == 200
        assert status(echo, operator, "POST") == 200

        assert keys("revoke", first).code == 0
        deadline = time.monotonic() + REFUSED_WITHIN_SECONDS
        while status(echo, first_secret, "POST") == 200:
            assert time.monotonic() < deadline
        assert status(echo, first_secret, "POST") == 401
        assert status(echo, operator, "POST") == 200

        # Without any valid key left nobody may call; it does not open again.
        assert keys("revoke", operator_key).code == 0
        deadline = time.monotonic() + REFUSED_WITHIN_SECONDS
        while status(echo, operator, "POST") == 200:
            assert time.monotonic() < deadline
        assert status(echo, None, "POST") == 401
        assert process.terminate() == 0
    assert operator not in process.log()
    assert first_secret not in process.log()
