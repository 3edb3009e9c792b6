"""The commands on a PostgreSQL database."""

from collections.abc import Iterator

import pytest

from gateway.api_keys import has_valid_key
from tests.gateway.commands import run_here
from tests.gateway.services import TARGET
from tests.support.postgres import PostgresServer


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.empty_database()
    yield url.replace("postgres@", "postgres:hunter2@")  # asked of nobody
    postgres.drop(url)


def test_the_schema_is_made_by_its_command(
    empty_url: str, folder: object, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = empty_url.replace(":hunter2", "")
    told = f"{shown} has no schema yet: run `nexus-gateway database migrate --database URL`"
    for group in ("keys", "signing-keys"):
        refused = run_here(capfd, group, "list", "--database", empty_url)
        assert refused.one_error() == told
    refused = run_here(capfd, "serve", TARGET, "--port", "0", "--database", empty_url)
    assert refused.code == 1
    assert told in refused.err
    assert "hunter2" not in refused.err
    for _ in range(2):
        made = run_here(capfd, "database", "migrate", "--database", empty_url)
        assert made.code == 0
        assert made.out.startswith(f"{shown} has schema version 0")


def test_keys(postgres_url: str, folder: object, capfd: pytest.CaptureFixture[str]) -> None:
    where = ("--database", postgres_url)
    assert not has_valid_key(postgres_url)
    made = run_here(capfd, "keys", "create", "billing", *where)
    assert f"for 'billing' may call, in {postgres_url}; " in made.err
    key_id = made.err.split()[0]
    assert has_valid_key(postgres_url)
    assert key_id in run_here(capfd, "keys", "list", *where).out
    assert run_here(capfd, "keys", "revoke", key_id, *where).out == f"{key_id} is revoked\n"
    again = run_here(capfd, "keys", "revoke", key_id, *where)
    assert again.one_error().startswith(f"there is no valid key '{key_id}'")
    assert not has_valid_key(postgres_url)


def test_a_database_that_cannot_be_used_is_one_line(
    folder: object, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/nexus"
    for command in (
        ("keys", "list"),
        ("database", "migrate"),
        ("serve", TARGET, "--port", "0"),
    ):
        said = run_here(capfd, *command, "--database", url).one_error()
        assert said.startswith("cannot connect to PostgreSQL at 127.0.0.1:1: ")
    said = run_here(capfd, "keys", "list", "--database", "mysql://me:hunter2@h/d").one_error()
    assert said.startswith("database: 'mysql://...@h/d' is not a database URL; use sqlite:///")
