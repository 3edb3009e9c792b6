"""`keys create|list|revoke`: done in the database itself, also while a gateway serves it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from gateway.commands.options import Config, Database
from gateway.commands.tables import wide_console
from gateway.roles import Role
from nexus_spec import NexusError

if TYPE_CHECKING:
    from gateway.api_keys import ApiKeys

app = typer.Typer(no_args_is_help=True, help="API keys of callers and operators.")


class KeyRefused(NexusError):
    """What was asked for cannot be done with keys."""


@app.command()
def create(
    principal: Annotated[str, typer.Argument(help="Who uses it; several keys may have one name.")],
    role: Annotated[
        Role, typer.Option(help="call: its own operations. operate: everything.")
    ] = Role.CALL,
    database: Database = None,
    config: Config = None,
) -> None:
    """Make a key and print it, this once."""
    if not principal or not principal.isprintable() or len(principal) > 200:
        raise KeyRefused("the name must have 1 to 200 printable characters")
    from callbacks.database import is_postgres, shown_database, sqlite_path
    from gateway.api_keys import ApiKeys

    url = _url(database, config)
    where = shown_database(url) if is_postgres(url) else sqlite_path(url).resolve()
    key, secret = ApiKeys(url).create(principal, role)
    typer.echo(
        f"{key.id} for {principal!r} may {role.value}, in {where}; the key is shown only now:",
        err=True,
    )
    typer.echo(secret)


@app.command("list")
def list_keys(database: Database = None, config: Config = None) -> None:
    """List the keys, without their secrets."""
    table = Table("id", "principal", "role", "created", "revoked", box=None)
    for key in _keys(database, config).list():
        cells = (key.id, key.principal, key.role, _moment(key.created_at), _moment(key.revoked_at))
        table.add_row(*map(Text, cells))
    wide_console().print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    database: Database = None,
    config: Config = None,
) -> None:
    """Revoke a key; a running gateway refuses it within a second."""
    if not _keys(database, config).revoke(key_id):
        raise KeyRefused(f"there is no valid key {key_id!r}; see `nexus-gateway keys list`")
    typer.echo(f"{key_id} is revoked")


def _url(database: str | None, config: Config) -> str:
    from gateway.settings import read_settings

    return read_settings({"database": database}, config).database


def _keys(database: str | None, config: Config) -> "ApiKeys":
    from callbacks.database import is_postgres, sqlite_path
    from gateway.api_keys import ApiKeys

    url = _url(database, config)
    if not is_postgres(url) and not sqlite_path(url).is_file():
        raise KeyRefused(
            f"there is no database {sqlite_path(url).resolve()}; name it with --database"
        )
    return ApiKeys(url)


def _moment(ms: int | None) -> str:
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
