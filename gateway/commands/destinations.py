"""`destinations list|disable|enable`: where completions go, and holding some of them back."""

import json
from typing import Annotated, Any

import typer

from gateway.commands.api import DEFAULT_URL, AsJson, Key, Url, request_api
from gateway.commands.tables import print_table, short_moment

app = typer.Typer(no_args_is_help=True, help="Where completions go.")

Destination = Annotated[
    str,
    typer.Argument(metavar="DESTINATION", help="Its scheme://host:port, or any URL there."),
]


@app.command("list")
def list_destinations(
    state: Annotated[
        str | None,
        typer.Option(help="open, half_open, disabled, waiting, failing or sound."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List destinations that made trouble or to which something is undelivered, the worst first."""
    params = {} if state is None else {"state": state}
    document = request_api("GET", url, "/destinations", api_key, params)
    if as_json:
        typer.echo(json.dumps(document))
        return
    print_table(
        "destination",
        ("state", "failures", "held until", "due", "in flight", "given up", "oldest due"),
        (
            (
                row["name"],
                row["state"],
                row["failures"],
                short_moment(row["open_until"] or row["not_before"]),
                row["due"],
                row["in_flight"],
                row["failed"],
                short_moment(row["oldest_due_at"]),
            )
            for row in document["destinations"]
        ),
    )


@app.command()
def disable(destination: Destination, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Hold the deliveries to a destination back; none of them is given up meanwhile."""
    answer = _post("disable", destination, url, api_key)
    typer.echo(f"{answer['name']} is disabled; deliveries that wait for it: {answer['due']}")


@app.command()
def enable(destination: Destination, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Deliver to a destination again, whatever its breaker says; what waits is tried anew."""
    answer = _post("enable", destination, url, api_key)
    typer.echo(f"{answer['name']} is enabled; deliveries that waited for it: {answer['due']}")


def _post(verb: str, destination: str, url: str, api_key: str | None) -> dict[str, Any]:
    body = json.dumps({"destination": destination}).encode()
    return request_api("POST", url, f"/destinations/{verb}", api_key, body=body)
