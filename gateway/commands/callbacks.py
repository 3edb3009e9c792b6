"""`callbacks list|show|replay`: completions on their way to callers, and those given up."""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm

from gateway.commands.api import (
    DEFAULT_URL,
    ApiCallFailed,
    AsJson,
    Key,
    PatientApi,
    Url,
    request_api,
)
from gateway.commands.moments import read_duration, read_moment
from gateway.commands.tables import print_rows, print_table, print_values, short_moment

app = typer.Typer(no_args_is_help=True, help="Completions on their way to callers.")

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Id = Annotated[int, typer.Argument(metavar="ID", help="As `callbacks list` shows it.", min=1)]
Destination = Annotated[
    str | None,
    typer.Option(help="Only to this scheme://host:port; any URL there will do."),
]
Service = Annotated[str | None, typer.Option(help="Only of operations of this service.")]
Operation = Annotated[str | None, typer.Option(help="Only of operations of this name.")]
Token = Annotated[str | None, typer.Option(help="Only of the operation with this token.")]
Since = Annotated[
    str | None,
    typer.Option(
        help="Only what ended then or later, or was registered and has not ended: "
        "2026-11-22T15:04:18Z, or 2h, 30m, 3d for so long ago."
    ),
]
Until = Annotated[str | None, typer.Option(help="The same; it did before.")]


@app.command("list")
def list_callbacks(
    state: Annotated[
        str | None,
        typer.Option(help="registered, due, in_flight, delivered or failed (a dead letter)."),
    ] = None,
    destination: Destination = None,
    service: Service = None,
    operation: Operation = None,
    token: Token = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List callbacks, the newest first."""
    params = {
        **({} if state is None else {"state": state}),
        **_filter(destination, service, operation, token, since, until),
        "limit": limit,
    }
    document = request_api("GET", url, "/callbacks", api_key, params)
    if as_json:
        typer.echo(json.dumps(document))
        return
    print_table(
        "id",
        ("operation", "destination", "state", "attempts", "next or end", "reason"),
        (
            (
                row["id"],
                _operation(row),
                row["destination"],
                _state(row),
                row["attempts"],
                short_moment(row["next_at"] or row["closed_at"]),
                row["reason"],
            )
            for row in document["callbacks"]
        ),
    )


@app.command()
def show(
    callback_id: Id, url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False
) -> None:
    """Show one callback: what is sent where, and what came of each attempt."""
    document = request_api("GET", url, f"/callbacks/{callback_id}", api_key)
    if as_json:
        typer.echo(json.dumps(document))
        return
    attempts = document.pop("attempt_log")
    print_values(document)
    columns = (
        "attempt", "started_at", "duration_ms", "status", "error", "address", "response_excerpt",
    )  # fmt: skip
    print_rows("attempt log", attempts, columns)


@app.command()
def replay(
    callback_ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="ID", help="These; or what the options say.", min=1),
    ] = None,
    destination: Destination = None,
    service: Service = None,
    operation: Operation = None,
    token: Token = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Whatever was given up, wherever it goes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=5000, help="How many with one request.")] = 500,
    patience: Annotated[
        str, typer.Option(help="How long the gateway may be away meanwhile (s, m, h or d).")
    ] = "5m",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Deliver completions again: those with these ids, or all that a filter finds among the dead.

    The gateway may be stopped and started again meanwhile, and so may this command: the same one
    then goes on with the rest.

    Exit codes: 0 all of them are delivered again, 1 some are not, and standard error says why,
    2 wrong usage, 130 interrupted.
    """
    chosen = _filter(destination, service, operation, token, since, until)
    ways = [bool(callback_ids), bool(chosen), everything]
    if sum(ways) != 1:
        raise typer.BadParameter("give ids, or a filter such as --destination, or --all")
    if callback_ids and dry_run:
        raise typer.BadParameter("--dry-run counts what a filter finds; there are ids")
    errors = Console(stderr=True)
    api = PatientApi(
        url,
        api_key,
        read_duration(patience, "--patience").total_seconds(),
        told=lambda line: _say(errors, line),
    )
    if callback_ids:
        _replay_each(errors, api, callback_ids)
        return
    replaying = _Replaying(errors, api, {**chosen, **({"all": True} if everything else {})})
    if dry_run:
        typer.echo(f"{replaying.total} would be replayed")
        return
    if replaying.total and not yes:
        _confirm(errors, replaying.total)
    replaying.run(batch)
    typer.echo(f"replayed {replaying.done}")


def _replay_each(errors: Console, api: PatientApi, callback_ids: list[int]) -> None:
    replayed = 0
    for callback_id in callback_ids:
        try:
            # It is on its way, so it is refused now, where the first answer was lost.
            api.post(f"/callbacks/{callback_id}/replay", when_repeated=409)
            replayed += 1
        except ApiCallFailed as error:
            if error.status not in {404, 409}:
                raise
            _say(errors, f"error: {callback_id}: {error}")
    typer.echo(f"replayed {replayed}")
    if replayed < len(callback_ids):
        raise typer.Exit(EXIT_REFUSED)


def _confirm(errors: Console, total: int) -> None:
    if not sys.stdin.isatty():
        _say(errors, f"error: {total} would be replayed; without a terminal to ask, say --yes")
        raise typer.Exit(EXIT_USAGE)
    try:
        # Not typer's: it writes to standard output too.
        agreed = Confirm.ask(f"Replay {total}?", console=errors, default=False)
    except (EOFError, KeyboardInterrupt):
        agreed = False
    if not agreed:
        _say(errors, "nothing is replayed")
        raise typer.Exit(EXIT_REFUSED)


class _Replaying:
    """The replay of what a filter finds at this moment, however often it has to be begun."""

    def __init__(self, errors: Console, api: PatientApi, chosen: Mapping[str, Any]) -> None:
        self._errors = errors
        self._api = api
        self._chosen = chosen
        counted = self._post(dry_run=True)
        self.total = int(counted["matching"])
        self._as_of: str = counted["as_of"]
        self._remaining = self.total

    @property
    def done(self) -> int:
        """How many are replayed, those included of which no answer told."""
        return self.total - self._remaining

    def run(self, batch: int) -> None:
        """Replay them."""
        # What is given up again meanwhile is not of this set: as_of stays the same.
        columns = (
            TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        terminal = self._errors.is_terminal
        with Progress(*columns, console=self._errors, disable=not terminal) as progress:
            task = progress.add_task("", total=self.total)
            try:
                while self._remaining:
                    answer = self._post(as_of=self._as_of, limit=batch)
                    self._remaining = min(int(answer["remaining"]), self.total)
                    progress.update(task, completed=self.done)
            except ApiCallFailed as error:
                raise ApiCallFailed(f"{self._how_far}: {error}", error.status) from error
            except KeyboardInterrupt:
                _say(self._errors, f"interrupted: {self._how_far}")
                raise typer.Exit(EXIT_INTERRUPTED) from None

    @property
    def _how_far(self) -> str:
        return f"replayed {self.done} of {self.total}, and the same command goes on with the rest"

    def _post(self, **more: object) -> dict[str, Any]:
        return self._api.post("/callbacks/replay", {**self._chosen, **more})


def _filter(
    destination: str | None,
    service: str | None,
    operation: str | None,
    token: str | None,
    since: str | None,
    until: str | None,
) -> dict[str, str]:
    asked = {
        "destination": destination,
        "service": service,
        "operation": operation,
        "token": token,
        "since": None if since is None else read_moment(since, "--since"),
        "until": None if until is None else read_moment(until, "--until"),
    }
    return {name: value for name, value in asked.items() if value is not None}


def _operation(row: Mapping[str, Any]) -> str:
    operation = f"{row['service']}/{row['operation']}"
    return operation if row["kind"] == "completion" else f"{row['kind']} of {operation}"


def _state(row: Mapping[str, Any]) -> str:
    state, waits_for = row["state"], row["waits_for"]
    return f"{state} ({waits_for})" if waits_for else str(state)


def _say(errors: Console, text: str) -> None:
    errors.print(text, highlight=False, markup=False, soft_wrap=True)
