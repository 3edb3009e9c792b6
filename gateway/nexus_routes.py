"""The Nexus endpoints: start, cancel, and the extensions for result and info."""

import re
from urllib.parse import unquote_to_bytes

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound

from gateway.access import Principal
from gateway.asgi import Answer, Disconnected, Receive, Scope, Send, send_answer
from gateway.error_responses import bad_request, error_response
from gateway.request_parsing import (
    own_headers,
    read_request_timeout,
    read_start,
    read_token,
    read_wait,
)
from gateway.runtime import Gateway
from handlers.inline import ClientDisconnected
from handlers.requests import OperationKey, Started, Succeeded
from handlers.services import DEFAULT_ENDPOINT
from nexus_spec import (
    Headers,
    InvalidWireValue,
    OperationAddress,
    OperationInfo,
    OperationState,
    format_link,
    parse_operation_path,
)

_DEFAULT_PREFIX = b"/services"
_NAMED_PREFIX = b"/nexus/endpoints/"
_SERVICES = b"/services"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class NexusRoute(BaseRoute):
    """Everything below `/services/` and `/nexus/endpoints/{endpoint}/services/`.

    The *raw* path is split, before percent-escapes are undone: Starlette's own routes match the
    decoded path, where `b%2Fcancel` cannot be told from `b/cancel`.
    """

    def __init__(self, endpoint: "NexusEndpoint") -> None:
        self._endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match by the raw path."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path = raw_path(scope)
        if path.startswith(_DEFAULT_PREFIX):
            rest = path[len(_DEFAULT_PREFIX) :]
            if not rest or rest[:1] == b"/":
                return Match.FULL, {"nexus.endpoint": b"default", "nexus.path": rest}
        elif path.startswith(_NAMED_PREFIX):
            endpoint, found, rest = path[len(_NAMED_PREFIX) :].partition(_SERVICES)
            if found and b"/" not in endpoint and (not rest or rest[:1] == b"/"):
                return Match.FULL, {"nexus.endpoint": endpoint, "nexus.path": rest}
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        """Refuse: operations are addressed by `nexus_spec.operation_path`."""
        raise NoMatchFound(name, dict(path_params))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        await self._endpoint(scope, receive, send)


class NexusEndpoint:
    """Answers the requests of the Nexus protocol: parse, dispatch, write the outcome."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._egress = gateway.settings.egress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure leaves as the protocol's own error."""
        try:
            answer = await self._answer(scope, receive)
        except (ClientDisconnected, Disconnected):
            return
        except Exception as error:  # noqa: BLE001  # every error becomes an answer
            answer = error_response(error)
        await send_answer(send, answer, scope["method"])

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        headers = Headers.from_raw(scope["headers"])
        principal = await self._gateway.parts.access.principal(scope, headers)
        address = parse_operation_path(scope["nexus.path"])
        endpoint = _endpoint_name(scope["nexus.endpoint"])
        match scope["method"], address.action:
            case "POST", "operation":
                request = await read_start(
                    scope, receive, headers, principal, endpoint, address, self._egress
                )
                outcome = await self._gateway.parts.engine.start(request)
                return _result(outcome) if isinstance(outcome, Succeeded) else _started(outcome)
            case "POST", "cancel":
                return await self._cancel(scope, headers, principal, endpoint, address)
            case "GET" | "HEAD", "result":
                return await self._fetch_result(scope, headers, principal, endpoint, address)
            case "GET" | "HEAD", "operation":
                return await self._info(scope, headers, principal, endpoint, address)
            case method, _:
                raise bad_request(f"method {method[:20]!r} is not used with this path")

    async def _cancel(
        self,
        scope: Scope,
        headers: Headers,
        principal: Principal,
        endpoint: str,
        address: OperationAddress,
    ) -> Answer:
        token = read_token(scope, headers, address)
        await self._gateway.parts.engine.cancel(
            _key(principal, endpoint, address),
            token,
            own_headers(headers),
            read_request_timeout(headers),
        )
        return Answer(202)

    async def _fetch_result(
        self,
        scope: Scope,
        headers: Headers,
        principal: Principal,
        endpoint: str,
        address: OperationAddress,
    ) -> Answer:
        token = read_token(scope, headers, address)
        wait_seconds = read_wait(scope, read_request_timeout(headers))
        key = _key(principal, endpoint, address)
        outcome = await self._gateway.parts.engine.result(key, token, wait_seconds)
        if outcome is not None:
            return _result(outcome)
        # 412: still running. 408: the caller wanted to wait, and may ask again.
        return Answer(408 if wait_seconds else 412)

    async def _info(
        self,
        scope: Scope,
        headers: Headers,
        principal: Principal,
        endpoint: str,
        address: OperationAddress,
    ) -> Answer:
        token = read_token(scope, headers, address)
        state = await self._gateway.parts.engine.state(_key(principal, endpoint, address), token)
        body = OperationInfo(token, state).to_json()
        return Answer(200, [("Content-Type", "application/json")], body)


def raw_path(scope: Scope) -> bytes:
    """Return the path as it was sent, without the prefix under which the app is mounted."""
    path: bytes | None = scope.get("raw_path")
    if path is None:  # optional in ASGI
        path = scope["path"].encode()
    root: bytes = scope.get("root_path", "").encode()
    if root and path.startswith(root):
        path = path[len(root) :]
    return path.partition(b"?")[0]


def _key(principal: Principal, endpoint: str, address: OperationAddress) -> OperationKey:
    return OperationKey(
        endpoint=endpoint,
        service=address.service,
        operation=address.operation,
        caller=principal.name,
    )


def _endpoint_name(raw: bytes) -> str:
    if raw == b"default":
        return DEFAULT_ENDPOINT
    if _BROKEN_ESCAPE.search(raw) is not None:
        raise bad_request("the endpoint's name has a % that is not followed by two hex digits")
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request("the endpoint's name is not UTF-8") from None


def _result(outcome: Succeeded) -> Answer:
    headers = [("Nexus-Operation-State", OperationState.SUCCEEDED.value)]
    # Some callers are stuck for ever by any other Content- header, or by a parameter of the type.
    content = outcome.content.headers
    if (content_type := content.get("content-type")) is not None:
        headers.append(("Content-Type", content_type))
    if (encoding := content.get("content-encoding")) is not None:
        headers.append(("Content-Encoding", encoding))
    if outcome.links:
        headers.extend(_link_headers(outcome))
    return Answer(200, headers, outcome.content.data)


def _started(outcome: Started) -> Answer:
    headers = [("Content-Type", "application/json")]
    if outcome.links:
        headers.extend(_link_headers(outcome))
    return Answer(201, headers, OperationInfo(outcome.token, OperationState.RUNNING).to_json())


def _link_headers(outcome: Started | Succeeded) -> list[tuple[str, str]]:
    try:
        return [("Nexus-Link", format_link(link)) for link in outcome.links]
    except InvalidWireValue as error:
        raise TypeError(f"a handler's link cannot be sent: {error}") from error
