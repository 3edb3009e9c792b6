"""`call`: start an operation, wait for its end with progress, print its result."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer
from nexusrpc import Content, HandlerError, OperationError, OperationErrorState
from rich.console import Console
from rich.status import Status
from rich.text import Text

from clients import ClientError, NexusClient, RetryPolicy, StillRunning, Unreachable
from gateway.commands.inputs import read_json_input
from nexus_spec import InvalidWireValue, check_name, parse_duration

EXIT_REFUSED = 3
EXIT_FAILED = 4
EXIT_CANCELED = 5
EXIT_STILL_RUNNING = 6
EXIT_UNREACHABLE = 7
EXIT_INTERRUPTED = 130

# A start is tried for a second: who calls by hand wants to hear at once that nobody listens there.
_START_RETRY = RetryPolicy(max_attempts=4)
_PROGRESS_SECONDS = 1.0
_ENDPOINT_PATH = re.compile(r"(?:/nexus/endpoints/[^/]+)?/services/?\Z")


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
    """Call an operation and print its result, as the service wrote it.

    The operation's token is printed on standard error, and its progress where that is a terminal
    and the API key may see it.

    Exit codes: 0 succeeded, 3 the request was refused, 4 the operation failed, 5 it was
    canceled, 6 it still runs after --wait, 7 the endpoint cannot be reached or does not speak
    the protocol, 2 wrong usage.
    """
    data = read_json_input(input_json, input_file)
    try:
        check_name(service, "service")
        check_name(operation, "operation")
        patience = parse_duration(wait)
    except InvalidWireValue as error:
        raise typer.BadParameter(str(error)) from error
    errors = Console(stderr=True)
    caller = _Caller(errors, endpoint, api_key, service, operation)
    try:
        result = asyncio.run(caller.call(data, patience, request_id))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001  # told apart there, and raised again
        _exit(errors, error, endpoint, wait)
    _print_result(result)


def _exit(errors: Console, error: Exception, endpoint: str, wait: str) -> NoReturn:
    said = str(error)
    match error:
        case OperationError(state=OperationErrorState.CANCELED):
            what, code = "canceled", EXIT_CANCELED
        case OperationError():
            what, code = "failed", EXIT_FAILED
        case HandlerError():
            what, code = f"refused ({error.raw_error_type})", EXIT_REFUSED
        case StillRunning():
            what, code, said = "still running", EXIT_STILL_RUNNING, f"not ended within {wait}"
        case Unreachable():
            what, code = f"cannot reach {endpoint}", EXIT_UNREACHABLE
        case ClientError():
            what, code = "error", EXIT_UNREACHABLE
        case ValueError():  # of an argument: the endpoint's URL, the API key, the request id
            raise typer.BadParameter(str(error)) from error
        case _:
            raise error
    _say(errors, f"{what}: {said}")
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, HandlerError | OperationError | ClientError):
            _say(errors, f"  caused by: {cause}")
        cause = cause.__cause__
    raise typer.Exit(code) from error


class _Caller:
    """One call: its start, the wait for its end, and what is shown meanwhile."""

    def __init__(
        self, errors: Console, endpoint: str, api_key: str | None, service: str, operation: str
    ) -> None:
        self._errors = errors
        self._endpoint = endpoint
        self._api_key = api_key
        self._service = service
        self._operation = operation
        self._began = time.monotonic()

    async def call(self, data: bytes, patience: timedelta, request_id: str | None) -> Content:
        deadline = self._began + patience.total_seconds()
        with self._errors.status(self._text("starting")) as status:
            async with self._client(_START_RETRY) as nexus:
                started = await nexus.start(
                    (self._service, self._operation), data, request_id=request_id
                )
                if started.token is None:
                    inline: Content = await started.result()
                    return inline
            _say(self._errors, f"token {started.token}")
            # Patiently from here on: the operation outlives a restart of its gateway.
            async with self._client(RetryPolicy()) as nexus, self._shown(status, started.token):
                handle = nexus.handle(self._service, self._operation, started.token)
                result: Content = await handle.result(max(0.0, deadline - time.monotonic()))
                return result

    def _client(self, retry: RetryPolicy) -> NexusClient:
        return NexusClient(
            self._endpoint, api_key=self._api_key, retry=retry, serializer=_Verbatim()
        )

    @contextlib.asynccontextmanager
    async def _shown(self, status: Status, token: str) -> AsyncIterator[None]:
        """Show how far the operation is, where a person looks."""
        if not self._errors.is_terminal:
            yield
            return
        watching = asyncio.create_task(self._watch(status, token))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, status: Status, token: str) -> None:
        # The operators' API of this gateway. Other servers have none, and a key with role `call`
        # may not ask: then only the time is shown.
        root = _ENDPOINT_PATH.sub("", self._endpoint)
        url = f"{root}/api/v1/operations/{quote(token, safe='')}"
        headers = {} if self._api_key is None else {"authorization": f"Bearer {self._api_key}"}
        told = root != self._endpoint
        async with httpx.AsyncClient(headers=headers, timeout=5.0) as http:
            while True:
                progress = await _progress_of(http, url) if told else None
                told = progress is not None
                seconds = timedelta(seconds=round(time.monotonic() - self._began))
                status.update(self._text(f"{progress or 'running'} {seconds}"))
                await asyncio.sleep(_PROGRESS_SECONDS)

    def _text(self, what: str) -> Text:
        return Text(f"{self._service}/{self._operation}: {what}")


async def _progress_of(http: httpx.AsyncClient, url: str) -> str | None:
    """Return how far an operation is; None where the server does not tell."""
    try:
        response = await http.get(url)
        document = response.json() if response.status_code == 200 else {}
        state, progress = str(document["state"]), document["progress"]
        if progress is None:
            return state
        return f"{state} {progress['fraction']:.0%} {progress['message']}".rstrip()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None


class _Verbatim:
    """Sends JSON text as it was given, and hands the result over as it came.

    Reading and writing it again would round numbers and change what the service wrote.
    """

    async def serialize(self, value: Any) -> Content:
        return Content(headers={"content-type": "application/json"} if value else {}, data=value)

    async def deserialize(self, content: Content, as_type: type[Any] | None = None) -> Any:
        return content


def _print_result(content: Content) -> None:
    data = content.data
    content_type = content.headers.get("content-type")
    if not data and content_type is None:
        data = b"null"
    sys.stdout.buffer.write(data)
    if content_type != "application/octet-stream" and not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _say(errors: Console, text: str) -> None:
    errors.print(text, highlight=False, markup=False, soft_wrap=True)
