"""`keys create|list|revoke`: done in the database itself, also while a gateway serves it."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from gateway.commands.beside import database_url, existing_database, shown_moment
from gateway.commands.options import Config, Database
from gateway.commands.tables import wide_console
from gateway.roles import Role
from nexus_spec import NexusError

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

    url = database_url(database, config)
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
    from gateway.api_keys import ApiKeys

    table = Table("id", "principal", "role", "created", "revoked", box=None)
    for key in ApiKeys(existing_database(database, config)).list():
        created, revoked = shown_moment(key.created_at), shown_moment(key.revoked_at)
        table.add_row(*map(Text, (key.id, key.principal, key.role, created, revoked)))
    wide_console().print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    database: Database = None,
    config: Config = None,
) -> None:
    """Revoke a key; a running gateway refuses it within a second."""
    from gateway.api_keys import ApiKeys

    if not ApiKeys(existing_database(database, config)).revoke(key_id):
        raise KeyRefused(f"there is no valid key {key_id!r}; see `nexus-gateway keys list`")
    typer.echo(f"{key_id} is revoked")
