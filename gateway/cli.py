"""`nexus-gateway`: the command line.

Exit codes: 0 done; 1 it could not be done, and standard error says why; 2 it was asked wrongly.
`call` has more of its own.
"""

import sys
from collections.abc import Sequence

import typer

from gateway.commands import (
    callbacks,
    calling,
    destinations,
    keys,
    operations,
    serving,
    signing_keys,
)
from nexus_spec import NexusError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A gateway for Nexus RPC: durable operations over HTTP.",
)
app.command()(serving.serve)
app.command()(calling.call)
app.command("check-config")(serving.check_config)
app.command()(serving.openapi)
app.add_typer(operations.app, name="operations")
app.add_typer(callbacks.app, name="callbacks")
app.add_typer(destinations.app, name="destinations")
app.add_typer(keys.app, name="keys")
app.add_typer(signing_keys.app, name="signing-keys")
_database = typer.Typer(no_args_is_help=True, help="The database's schema.")
_database.command("migrate")(serving.migrate_database)
app.add_typer(_database, name="database")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on standard error, not a traceback.

    Args:
        arguments: The words after the command's name; by default those of the process.
    """
    try:
        app(args=arguments)
    except NexusError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(1)
