"""`call`: start an operation, wait for its end with progress, print its result."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from nexusrpc import HandlerError, OperationError, OperationErrorState
from rich.console import Console

from clients import ClientError, NexusClient, StillRunning
from nexus_spec import InvalidWireValue, parse_duration

EXIT_REFUSED = 3
EXIT_FAILED = 4
EXIT_CANCELED = 5
EXIT_STILL_RUNNING = 6
EXIT_UNREACHABLE = 7


def call(
    service: Annotated[str, typer.Argument(help="The service's name.")],
    operation: Annotated[str, typer.Argument(help="The operation's name.")],
    input_json: Annotated[
        str | None, typer.Option("--input", help="The input as JSON.", show_default=False)
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input-file", help="A file with the input as JSON; - is standard input."),
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option(
            envvar="NEXUS_GATEWAY_ENDPOINT", help="The endpoint: all before /SERVICE/OPERATION."
        ),
    ] = "http://127.0.0.1:8080/services",
    wait: Annotated[str, typer.Option(help="How long to wait for the end (ms, s or m).")] = "5m",
    request_id: Annotated[
        str | None,
        typer.Option(help="Idempotency key: the same one finds the same operation again."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="NEXUS_GATEWAY_API_KEY", help="An API key.", show_default=False),
    ] = None,
) -> None:
    """Call an operation and print its result as JSON.

    Exit codes: 0 succeeded, 3 the request was refused, 4 the operation failed, 5 it was
    canceled, 6 it still runs after --wait (its token is printed on standard error), 7 the
    endpoint cannot be reached, 2 wrong usage.
    """
    value = _read_input(input_json, input_file)
    try:
        patience = parse_duration(wait)
    except InvalidWireValue as error:
        raise typer.BadParameter(str(error), param_hint="--wait") from error
    errors = Console(stderr=True)
    try:
        client_call = _call(
            errors, endpoint, api_key, service, operation, value, patience, request_id
        )
        result = asyncio.run(client_call)
    except OperationError as error:
        _say(errors, error.state.value, error)
        canceled = error.state is OperationErrorState.CANCELED
        raise typer.Exit(EXIT_CANCELED if canceled else EXIT_FAILED) from error
    except HandlerError as error:
        _say(errors, f"refused ({error.raw_error_type})", error)
        raise typer.Exit(EXIT_REFUSED) from error
    except StillRunning as error:
        _say(errors, "still running", error)
        raise typer.Exit(EXIT_STILL_RUNNING) from error
    except (ClientError, ValueError) as error:
        _say(errors, "error", error)
        raise typer.Exit(EXIT_UNREACHABLE) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if isinstance(result, bytes):
        sys.stdout.buffer.write(result)
    else:
        typer.echo(json.dumps(result, ensure_ascii=False))


async def _call(
    errors: Console,
    endpoint: str,
    api_key: str | None,
    service: str,
    operation: str,
    value: Any,
    patience: timedelta,
    request_id: str | None,
) -> Any:
    deadline = asyncio.get_running_loop().time() + patience.total_seconds()
    async with NexusClient(endpoint, api_key=api_key) as nexus:
        with _progress(errors, f"{service}/{operation}: starting") as status:
            handle = await nexus.start((service, operation), value, request_id=request_id)
            if handle.token is not None:
                status.update(f"{service}/{operation}: running, token {handle.token}")
                if not errors.is_terminal:
                    errors.print(f"token {handle.token}", highlight=False, soft_wrap=True)
            left = deadline - asyncio.get_running_loop().time()
            return await handle.result(timeout=max(0.0, left))


@contextlib.contextmanager
def _progress(errors: Console, text: str) -> Iterator[Any]:
    with errors.status(text) as status:
        yield status


def _say(errors: Console, what: str, error: BaseException) -> None:
    errors.print(f"{what}: {error}", highlight=False, markup=False, soft_wrap=True)
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, HandlerError | OperationError | ClientError):
            errors.print(f"  caused by: {cause}", highlight=False, markup=False, soft_wrap=True)
        cause = cause.__cause__


def _read_input(input_json: str | None, input_file: Path | None) -> Any:
    if input_json is not None and input_file is not None:
        raise typer.BadParameter("give --input or --input-file, not both")
    if input_file is not None:
        try:
            input_json = sys.stdin.read() if str(input_file) == "-" else input_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{input_file}: {error}", param_hint="--input-file") from error
    if input_json is None:
        return None
    try:
        return json.loads(input_json)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--input") from error
