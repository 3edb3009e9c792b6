import base64
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from callbacks.database import Statement, run_beside, table_of
from callbacks.records import SigningKeyRecord
from callbacks.signing_keys import CALLBACKS, CALLS, CREATE_FIRST
from clients import parse_secret
from clients.callback_tokens import new_signing_key
from clients.signatures import destination_secret
from gateway.schema import migrate
from gateway.signing_keys import StoredSigningKeys
from tests.gateway.commands import Finished, run_here
from tests.gateway.services import TARGET
from tests.support.gateway_process import GatewayProcess

DESTINATION = "https://a.example:443"

_keys = table_of(SigningKeyRecord)
_SECRETS = Statement(sa.select(_keys.c.id, _keys.c.secret))
_POSTPONE = Statement(
    sa.update(_keys)
    .where(_keys.c.id == sa.bindparam("key_id"))
    .values(created_at=_keys.c.created_at + 60_000)
)


class SigningKeys:
    """The command `signing-keys` on one database."""

    def __init__(self, capfd: pytest.CaptureFixture[str], url: str) -> None:
        self._capfd = capfd
        self.url = url

    def __call__(self, *arguments: str) -> Finished:
        return run_here(self._capfd, "signing-keys", *arguments, "--database", self.url)

    def rotate(self, *options: str) -> str:
        """Rotate the keys and return the id of the new one."""
        done = self("rotate", *options)
        assert done.code == 0, done
        return done.out.split()[0]

    def secrets(self, destination: str) -> list[bytes]:
        """Return the secrets that the command prints."""
        done = self("secret", destination)
        assert done.code == 0, done
        return [parse_secret(line) for line in done.out.splitlines()]

    def stored(self) -> dict[str, bytes]:
        """Return what must not be shown, by id."""
        return {key_id: bytes(secret) for key_id, secret in run_beside(self.url, _SECRETS, {})}


@pytest.fixture(params=["sqlite", "postgresql"])
def keys(
    request: pytest.FixtureRequest, folder: Path, capfd: pytest.CaptureFixture[str]
) -> SigningKeys:
    if request.param == "postgresql":
        return SigningKeys(capfd, str(request.getfixturevalue("postgres_url")))
    url = f"sqlite:///{folder}/nexus.db"
    migrate(url)
    return SigningKeys(capfd, url)


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)


def test_the_first_key_is_made_for_who_asks_for_a_secret(keys: SigningKeys) -> None:
    done = keys("secret", DESTINATION)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", done.out)
    assert done.err == f"of {DESTINATION}, the newest first:\n"
    [(key_id, master)] = keys.stored().items()
    assert parse_secret(done.out.strip()) == destination_secret(master, DESTINATION)
    assert keys("secret", DESTINATION).out == done.out
    assert list(keys.stored()) == [key_id]


@pytest.mark.parametrize(
    ("given", "destination"),
    [
        ("https://a.example", DESTINATION),
        ("https://a.example/cb?x=1", DESTINATION),
        ("HTTPS://A.Example.:443/", DESTINATION),
        ("http://a.example/cb", "http://a.example:80"),
        ("http://a.example:25/cb", "http://a.example:25"),
        ("http://127.0.0.1:9000/cb", "http://127.0.0.1:9000"),
        ("http://2130706433:9000/cb", "http://127.0.0.1:9000"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_a_url_stands_for_its_destination(given: str, destination: str, keys: SigningKeys) -> None:
    done = keys("secret", given)
    assert done.err == f"of {destination}, the newest first:\n"
    [master] = keys.stored().values()
    assert parse_secret(done.out.strip()) == destination_secret(master, destination)


def test_keys_are_listed_without_their_secrets(keys: SigningKeys) -> None:
    run_beside(keys.url, CREATE_FIRST, {"id": "sk_call", "purpose": CALLS, "secret": b"c" * 32})
    old = keys.rotate()
    new = keys.rotate()
    listed = keys("list").out
    heading, first, second, third = listed.splitlines()
    assert heading.split() == ["id", "purpose", "created", "signs", "until"]
    assert first.split()[:2] == [new, CALLBACKS]
    assert second.split()[:2] == [old, CALLBACKS]
    assert third.split()[:2] == ["sk_call", CALLS]
    assert [line.count("UTC") for line in (first, second, third)] == [1, 2, 1]
    for secret in keys.stored().values():
        for text in (secret.hex(), base64.b64encode(secret).decode(), str(secret)):
            assert text not in listed


def test_after_a_rotation_both_keys_sign_for_a_while(keys: SigningKeys) -> None:
    [before] = keys.secrets(DESTINATION)
    [old] = keys.stored()
    done = keys("rotate")
    told = rf"(sk_[0-9a-f]{{12}}) signs from now on\n{old} signs until (.* UTC)\n"
    match = re.fullmatch(told, done.out)
    assert match is not None, done
    new, until = match.groups()
    day = timedelta(hours=24)
    assert abs(moment(until) - datetime.now(UTC) - day) < timedelta(minutes=1)
    after = keys.secrets(DESTINATION)
    assert after == [destination_secret(keys.stored()[new], DESTINATION), before]


def test_a_key_may_be_retired_at_once(keys: SigningKeys) -> None:
    [before] = keys.secrets(DESTINATION)
    keys.rotate("--overlap", "0s")
    [after] = keys.secrets(DESTINATION)
    assert after != before


def test_a_rotation_lets_no_key_sign_for_longer_than_was_said(keys: SigningKeys) -> None:
    keys.secrets(DESTINATION)
    keys.rotate("--overlap", "0s")
    keys.rotate("--overlap", "1h")
    ends = {key.id: key.signs_until for key in StoredSigningKeys(keys.url).list()}
    keys.rotate("--overlap", "7d")
    later = {key.id: key.signs_until for key in StoredSigningKeys(keys.url).list()}
    assert [later[key_id] for key_id, end in ends.items() if end is not None] == [
        end for end in ends.values() if end is not None
    ]
    assert list(later.values()).count(None) == 1
    keys.rotate("--overlap", "30m")
    sooner = {key.id: key.signs_until for key in StoredSigningKeys(keys.url).list()}
    now_ms = datetime.now(UTC).timestamp() * 1000
    assert all(end is None or end < now_ms + 31 * 60_000 for end in sooner.values())


def test_a_rotation_leaves_the_key_of_one_that_came_after_it(keys: SigningKeys) -> None:
    newest = keys.rotate()
    run_beside(keys.url, _POSTPONE, {"key_id": newest})
    overtaken = keys.rotate()
    ends = {key.id: key.signs_until for key in StoredSigningKeys(keys.url).list()}
    assert ends == {newest: None, overtaken: None}
    last = keys.rotate()
    ends = {key.id: key.signs_until for key in StoredSigningKeys(keys.url).list()}
    assert ends[overtaken] is not None
    assert ends[last] is None


def test_keys_of_calls_are_left_alone(keys: SigningKeys) -> None:
    call = new_signing_key()
    run_beside(keys.url, CREATE_FIRST, {"id": call.id, "purpose": CALLS, "secret": call.secret})
    keys.rotate("--overlap", "0s")
    keys.rotate("--overlap", "0s")
    [kept] = [key for key in StoredSigningKeys(keys.url).list() if key.purpose == CALLS]
    assert kept.signs_until is None
    assert destination_secret(call.secret, DESTINATION) not in keys.secrets(DESTINATION)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("a.example", "must begin with http:// or https://"),
        ("ftp://a.example/", "must begin with http:// or https://"),
        ("https://me:pw@a.example/", "user name or password"),
        ("https://a.example:0/", "port must be a number"),
        ("https://a.example:x/", "port must be a number"),
        ("https://[x]/", "not an IPv6 address"),
        ("http://169.254.169.254/", "may not be called"),
        ("", "must begin with http:// or https://"),
    ],
)
def test_what_is_no_destination_has_no_secret(
    url: str, said: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = f"sqlite:///{folder}/nexus.db"
    migrate(where)
    keys = SigningKeys(capfd, where)
    assert said in keys("secret", url).one_error()
    assert keys.stored() == {}


@pytest.mark.parametrize("overlap", ["", "24", "-1h", "1.5h", "1w", "h", "1e3s", "999999d"])
def test_an_overlap_is_a_duration(
    overlap: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = f"sqlite:///{folder}/nexus.db"
    migrate(where)
    done = SigningKeys(capfd, where)("rotate", f"--overlap={overlap}")
    assert (done.code, done.out) == (2, "")
    assert "expected a number and a unit of ms, s, m, h or d" in " ".join(
        done.err.replace("│", " ").split()
    )


@pytest.mark.parametrize("command", [("list",), ("rotate",), ("secret", DESTINATION)])
def test_a_wrong_name_makes_no_database(
    command: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "nosuch.db"
    keys = SigningKeys(capfd, f"sqlite:///{path}")
    said = keys(*command).one_error()
    assert said == f"there is no database {path.resolve()}; name it with --database"
    assert not path.exists()


def test_all_is_done_beside_a_running_gateway(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = folder / "nexus.db"
    with GatewayProcess.start(TARGET, database) as process:
        keys = SigningKeys(capfd, f"sqlite:///{database}")
        [old] = keys.secrets(DESTINATION)
        new = keys.rotate()
        assert new in keys("list").out
        assert old in keys.secrets(DESTINATION)
        assert process.terminate() == 0
