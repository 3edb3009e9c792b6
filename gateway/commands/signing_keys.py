"""`signing-keys list|rotate|secret`: done in the database itself, as `keys` are."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from gateway.commands.beside import existing_database, shown_moment
from gateway.commands.inputs import read_duration
from gateway.commands.options import Config, Database
from gateway.commands.tables import wide_console

if TYPE_CHECKING:
    from callbacks.egress import EgressPolicy

app = typer.Typer(
    no_args_is_help=True, help="Keys that sign completions, and the secrets of their receivers."
)


@app.command("list")
def list_keys(database: Database = None, config: Config = None) -> None:
    """List the keys, without their secrets; where no end is set they go on signing."""
    from gateway.signing_keys import StoredSigningKeys

    table = Table("id", "purpose", "created", "signs until", box=None)
    for key in StoredSigningKeys(existing_database(database, config)).list():
        created, until = shown_moment(key.created_at), shown_moment(key.signs_until)
        table.add_row(*map(Text, (key.id, key.purpose, created, until)))
    wide_console().print(table)


@app.command()
def rotate(
    overlap: Annotated[
        str, typer.Option(help="How long the older keys sign as well (ms, s, m, h or d).")
    ] = "24h",
    database: Database = None,
    config: Config = None,
) -> None:
    """Make a new key for completions, and let the older ones end after the overlap.

    A gateway that runs signs with it within a minute. Receivers need their new secrets before
    the overlap is over.
    """
    from gateway.signing_keys import StoredSigningKeys

    duration = read_duration(overlap, "--overlap")
    rotation = StoredSigningKeys(existing_database(database, config)).rotate(duration)
    typer.echo(f"{rotation.key_id} signs from now on")
    for key_id, until in rotation.retired.items():
        typer.echo(f"{key_id} signs until {shown_moment(until)}")


@app.command()
def secret(
    destination: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="The callback URL, or its beginning: https://HOST:PORT."
        ),
    ],
    notices: Annotated[
        bool,
        typer.Option("--notices", help="Of the dead_letter_webhook, instead of completions."),
    ] = False,
    database: Database = None,
    config: Config = None,
) -> None:
    """Print the secrets that completions to a destination are signed with now, the newest first.

    All URLs of a scheme, host and port have the same; no two destinations do.
    """
    from callbacks.egress import check_callback_url
    from clients.signatures import secret_text
    from gateway.signing_keys import StoredSigningKeys

    name = check_callback_url(destination, _anything(destination)).name
    keys = StoredSigningKeys(existing_database(database, config))
    secrets = keys.secrets_of(name, notices=notices)
    typer.echo(f"of {name}, the newest first:", err=True)
    for each in secrets:
        typer.echo(secret_text(each))


def _anything(url: str) -> "EgressPolicy":
    """Return a policy that allows what any gateway's could: settings do not matter here."""
    from urllib.parse import urlsplit

    from callbacks.egress import AllowRule, EgressPolicy

    try:
        port = urlsplit(url).port
    except ValueError:
        port = None  # the URL will be refused
    anywhere = AllowRule("*", insecure=True, private=True)
    named = AllowRule("*", port=port or None, insecure=True, private=True)
    return EgressPolicy(allow=(anywhere, named))
