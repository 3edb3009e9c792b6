"""Requests of commands to the operators' API of a running gateway."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import httpx
import typer

from nexus_spec import NexusError, error_of_failure, parse_failure

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

DEFAULT_URL = "http://127.0.0.1:8080"

_TIMEOUT_SECONDS = 30.0
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
# It stops, its database is away, or the proxy before it does not find it.
_AWAY_STATUSES = {502, 503, 504}


class ApiCallFailed(NexusError):
    """The gateway cannot be reached, or refused the request.

    Attributes:
        status: of the answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class GatewayAway(ApiCallFailed):
    """The gateway did not answer, and may do so in a while.

    Attributes:
        may_be_done: whether the request may have arrived.
    """

    may_be_done = True


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
        ApiCallFailed: The gateway cannot be reached, or refused the request; GatewayAway where
            that may be different in a while.
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
            timeout=_TIMEOUT_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    except UnicodeEncodeError:
        raise ApiCallFailed("the API key has characters that no key has") from None
    kind = GatewayAway if response.status_code in _AWAY_STATUSES else ApiCallFailed
    try:
        if response.is_success:
            answer = response.json() if response.content else {}
            if isinstance(answer, dict):
                return answer
            raise ValueError("not an object")
        failure = parse_failure(response.content)
    except ValueError:
        message = f"{url} answered {response.status_code}: is it a gateway?"
        raise kind(message, response.status_code) from None
    refused = error_of_failure(failure, status=response.status_code)
    raise kind(f"{refused.message} ({response.status_code})", response.status_code)


def _unreachable(url: str, error: httpx.HTTPError | httpx.InvalidURL) -> ApiCallFailed:
    message = (
        f"cannot reach the gateway at {url}: {error}; is it running? (--url, NEXUS_GATEWAY_URL)"
    )
    if not isinstance(error, (*_NOT_SENT, *_LOST)):
        return ApiCallFailed(message)
    away = GatewayAway(message)
    away.may_be_done = not isinstance(error, _NOT_SENT)
    return away


class PatientApi:
    """The operators' API of a gateway that may be killed and started again meanwhile.

    One that never answered is not waited for: its address may be wrong.

    Args:
        url: the gateway's address.
        api_key: a key with role operate.
        patience_seconds: how long it may be away.
        told: takes a line when it is found away, and when it is back.
        monotonic: the clock, in seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        patience_seconds: float,
        *,
        told: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._api_key = api_key
        self._patience_seconds = patience_seconds
        self._told = told
        self._monotonic = monotonic
        self._sleep = sleep
        self._has_answered = False

    def post(
        self,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        when_repeated: int | None = None,
    ) -> dict[str, Any]:
        """Post a document until there is an answer, and return it.

        Args:
            path: below `/api/v1`.
            document: the body; none where it is None.
            when_repeated: the status that refuses what has been done before: no error where the
                first answer may have been lost.

        Raises:
            ApiCallFailed: It refused the request, or was away for longer than there is patience
                (GatewayAway).
        """
        body = None if document is None else json.dumps(document).encode()
        away_since: float | None = None
        may_be_done = False
        wait_seconds = _FIRST_WAIT_SECONDS
        while True:
            try:
                answer = request_api("POST", self._url, path, self._api_key, body=body)
            except GatewayAway as error:
                now = self._monotonic()
                may_be_done |= error.may_be_done
                if away_since is None:
                    away_since = now
                left_seconds = away_since + self._patience_seconds - now
                if not self._has_answered or left_seconds <= 0:
                    raise
                if now == away_since:
                    self._told(f"waiting for the gateway: {error}")
            except ApiCallFailed as error:
                if not (may_be_done and error.status == when_repeated):
                    raise
                return {}
            else:
                if away_since is not None:
                    self._told("the gateway answers again")
                self._has_answered = True
                return answer
            self._sleep(min(wait_seconds, left_seconds))
            wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)
