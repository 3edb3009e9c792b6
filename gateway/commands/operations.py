"""`operations list|show|cancel|resume|signal`: a gateway's operations, asked over its HTTP API."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.commands.inputs import read_json_input
from nexus_spec import NexusError, error_of_failure, parse_failure

app = typer.Typer(no_args_is_help=True, help="Operations of a running gateway.")

Url = Annotated[
    str,
    typer.Option("--url", envvar="NEXUS_GATEWAY_URL", help="The gateway's address."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="NEXUS_GATEWAY_API_KEY",
        help="A key with role operate.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what the API answers.")]
Token = Annotated[str, typer.Argument(metavar="TOKEN", help="The operation's token.")]

DEFAULT_URL = "http://127.0.0.1:8080"


class ApiCallFailed(NexusError):
    """The gateway cannot be reached, or refused the request."""


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
    table = Table(box=None)
    # A token that is cut short is of no use to anybody.
    table.add_column("token", no_wrap=True, min_width=36)
    for name in ("operation", "state", "started", "progress"):
        table.add_column(name, no_wrap=True)
    for row in document["operations"]:
        cells = (
            row["token"],
            f"{row['service']}/{row['operation']}",
            row["state"],
            _short(row["created_at"]),
            _progress(row["progress"]),
        )
        table.add_row(*map(Text, cells))
    wide_console().print(table)


@app.command()
def show(
    token: Token, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False
) -> None:
    """Show one operation: its steps, its outcome, its deliveries."""
    document = request_api("GET", url, _path_of(token), api_key)
    if as_json:
        typer.echo(json.dumps(document))
        return
    console = wide_console()
    steps, deliveries = document.pop("steps"), document.pop("deliveries")
    for name, value in document.items():
        if value is not None and value != "":
            console.print(f"[bold]{name}[/]: ", end="")
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            console.print(shown, markup=False, highlight=False, soft_wrap=True)
    _print_rows(console, "steps", steps, ("key", "kind", "attempts", "recorded_at", "error"))
    _print_rows(console, "deliveries", deliveries, ("url", "state", "attempts", "next_at"))


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


def request_api(
    method: str,
    url: str,
    path: str,
    api_key: str | None,
    params: Any = None,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make one request to the operators' API and return the answer's JSON.

    Raises:
        ApiCallFailed: The gateway cannot be reached, or refused the request.
    """
    sent = dict(headers or {})
    if api_key:
        sent["authorization"] = f"Bearer {api_key}"
    if body is not None:
        sent["content-type"] = "application/json"
    try:
        response = httpx.request(
            method,
            f"{url.rstrip('/')}/api/v1{path}",
            params=params,
            headers=sent,
            content=body,
            timeout=30,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiCallFailed(
            f"cannot reach the gateway at {url}: {error}; is it running? (--url, NEXUS_GATEWAY_URL)"
        ) from error
    except UnicodeEncodeError:
        raise ApiCallFailed("the API key has characters that no key has") from None
    try:
        if response.is_success:
            answer = response.json() if response.content else {}
            if isinstance(answer, dict):
                return answer
            raise ValueError("not an object")
        failure = parse_failure(response.content)
    except ValueError:
        raise ApiCallFailed(f"{url} answered {response.status_code}: is it a gateway?") from None
    refused = error_of_failure(failure, status=response.status_code)
    raise ApiCallFailed(f"{refused.message} ({response.status_code})")


def wide_console() -> Console:
    """Return what tables are printed on."""
    # A pipe has no width of its own, and what reads it wants whole lines.
    return Console() if sys.stdout.isatty() else Console(width=240)


def _path_of(token: str) -> str:
    return f"/operations/{quote(token, safe='')}"


def _short(moment: str) -> str:
    return moment[:19].replace("T", " ")


def _progress(progress: dict[str, Any] | None) -> str:
    return "" if progress is None else f"{progress['fraction']:.0%} {progress['message']}"


def _print_rows(
    console: Console, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]
) -> None:
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(Text("" if row[c] is None else str(row[c])) for c in columns))
    console.print(table)
