"""`operations list|show|cancel|resume|signal`: a gateway's operations, asked over its HTTP API."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.commands.api import DEFAULT_URL, AsJson, Key, Url, request_api
from gateway.commands.inputs import read_json_input
from gateway.commands.tables import print_rows, print_table, print_values, short_moment

app = typer.Typer(no_args_is_help=True, help="Operations of a running gateway.")

Token = Annotated[str, typer.Argument(metavar="TOKEN", help="The operation's token.")]


@app.command("list")
def list_operations(
    state: Annotated[
        str | None,
        typer.Option(help="ready, running, paused, succeeded, failed or canceled."),
    ] = None,
    service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    operation: Annotated[str | None, typer.Option(help="Only this operation.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List operations, the newest first."""
    asked = {"state": state, "service": service, "operation": operation, "limit": limit}
    params = {name: value for name, value in asked.items() if value is not None}
    document = request_api("GET", url, "/operations", api_key, params)
    if as_json:
        typer.echo(json.dumps(document))
        return
    print_table(
        "token",
        ("operation", "state", "started", "progress"),
        (
            (
                row["token"],
                f"{row['service']}/{row['operation']}",
                row["state"],
                short_moment(row["created_at"]),
                _progress(row["progress"]),
            )
            for row in document["operations"]
        ),
    )


@app.command()
def show(
    token: Token, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False
) -> None:
    """Show one operation: its steps, its outcome, its deliveries."""
    document = request_api("GET", url, _path_of(token), api_key)
    if as_json:
        typer.echo(json.dumps(document))
        return
    steps, deliveries = document.pop("steps"), document.pop("deliveries")
    print_values(document)
    print_rows("steps", steps, ("key", "kind", "attempts", "recorded_at", "error"))
    print_rows("deliveries", deliveries, ("id", "url", "state", "attempts", "next_at"))


@app.command()
def cancel(token: Token, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Ask an operation to end."""
    request_api("POST", url, f"{_path_of(token)}/cancel", api_key)
    typer.echo("cancel requested")


@app.command()
def resume(token: Token, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Run a paused operation again."""
    request_api("POST", url, f"{_path_of(token)}/resume", api_key)
    typer.echo("resumed")


@app.command()
def signal(
    token: Token,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the handler waits for.")],
    payload: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="What the handler gets.")
    ] = None,
    payload_file: Annotated[
        Path | None, typer.Option("--input-file", help="The same, from a file; - is stdin.")
    ] = None,
    dedupe_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="A repeated signal of this id counts once."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Tell a durable operation something that it waits for."""
    body = read_json_input(payload, payload_file)
    answer = request_api(
        "POST",
        url,
        f"{_path_of(token)}/signals/{quote(name, safe='')}",
        api_key,
        body=body,
        headers={} if dedupe_id is None else {"idempotency-key": dedupe_id},
    )
    typer.echo("was signaled before" if answer["duplicate"] else "signaled")


def _path_of(token: str) -> str:
    return f"/operations/{quote(token, safe='')}"


def _progress(progress: dict[str, Any] | None) -> str:
    return "" if progress is None else f"{progress['fraction']:.0%} {progress['message']}"
