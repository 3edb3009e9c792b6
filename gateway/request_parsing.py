"""From an HTTP request to a `StartRequest`: every rule and limit of the wire, at the door."""

import re
import uuid
from collections.abc import Callable
from typing import TypeVar

from nexusrpc import Link

from callbacks.egress import EgressPolicy, check_callback_url
from callbacks.header_rules import check_callback_headers
from callbacks.outbox import Registration
from gateway.access import Principal
from gateway.asgi import Receive, Scope, query_values, read_body
from gateway.error_responses import bad_request
from handlers.requests import OperationKey, StartRequest
from nexus_spec import (
    Headers,
    InvalidWireValue,
    OperationAddress,
    callback_headers,
    check_token,
    content_headers,
    parse_duration,
    parse_links,
)
from nexus_spec import headers as names
from nexus_spec.limits import (
    CALLBACK_HEADER_BYTES,
    CALLBACK_URL_BYTES,
    LINK_BYTES,
    LINKS,
    PAYLOAD_BYTES,
    USER_HEADER_BYTES,
)

T = TypeVar("T")
V = TypeVar("V")

_MOST_WAIT_SECONDS = 60.0
_REQUEST_MARGIN_SECONDS = 0.5
_REQUEST_ID_BYTES = 1000
_PREFER_WAIT = re.compile(
    r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?=$|[,;])", re.ASCII | re.IGNORECASE
)

# Headers that are the protocol's, the connection's or a credential, and so not the caller's own.
_PROTOCOL_PREFIXES = ("nexus-", "content-", "proxy-")
_NOT_THE_CALLERS = frozenset(
    {
        "authorization",
        "connection",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


async def read_start(
    scope: Scope,
    receive: Receive,
    headers: Headers,
    principal: Principal,
    endpoint: str,
    address: OperationAddress,
    policy: EgressPolicy,
) -> StartRequest:
    """Read and check a start operation request, body included.

    Raises:
        HandlerError: BAD_REQUEST, with what is wrong and what is expected.

    Spec: SPEC.md#start-operation
    """
    body = await read_body(receive, PAYLOAD_BYTES)
    request_timeout = read_request_timeout(headers)
    operation_timeout = None
    if (value := headers.get(names.OPERATION_TIMEOUT)) is not None:
        operation_timeout = _header_value(parse_duration, names.OPERATION_TIMEOUT, value) or None
    prefer = headers.get("prefer")
    return StartRequest(
        key=OperationKey(
            endpoint=endpoint,
            service=address.service,
            operation=address.operation,
            caller=principal.name,
        ),
        request_id=_request_id(headers),
        body=body,
        content_headers=content_headers(headers),
        headers=own_headers(headers),
        callback=_callback(scope, headers, policy),
        links=read_links(headers),
        request_timeout_seconds=request_timeout,
        operation_timeout=operation_timeout,
        wait_seconds=0.0 if prefer is None else _wait_seconds(prefer, request_timeout),
        trace_context=headers.get("traceparent"),
        disconnected=lambda: _until_disconnect(receive),
    )


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def read_request_timeout(headers: Headers) -> float | None:
    """Return the seconds that the caller waits for this answer; None without a limit.

    Raises:
        HandlerError: BAD_REQUEST.

    Spec: SPEC.md#request-timeout
    """
    value = headers.get(names.REQUEST_TIMEOUT)
    if value is None:
        return None
    timeout = _header_value(parse_duration, names.REQUEST_TIMEOUT, value)
    return timeout.total_seconds() or None


def read_token(scope: Scope, headers: Headers, address: OperationAddress) -> str:
    """Return the operation token of a request: from the path, the header or the query.

    Raises:
        HandlerError: BAD_REQUEST; there is none, or it is no token.

    Spec: SPEC.md#cancel-operation
    """
    token = address.token or headers.get(names.OPERATION_TOKEN)
    if not token:
        token = query_values(scope).get("token", [""])[0]
    if not token:
        raise bad_request(
            "the operation token is missing: send it as header Nexus-Operation-Token, "
            "or as query parameter token"
        )
    try:
        check_token(token)
    except InvalidWireValue as error:
        raise bad_request(str(error)) from None
    return token


def read_wait(scope: Scope, request_timeout: float | None) -> float:
    """Return the seconds that a caller wants to wait for a result (query parameter `wait`).

    Raises:
        HandlerError: BAD_REQUEST.
    """
    value = query_values(scope).get("wait", [""])[0]
    if not value:
        return 0.0
    wait = _header_value(parse_duration, "wait", value).total_seconds()
    return _bounded_wait(wait, request_timeout)


def read_links(headers: Headers) -> tuple[Link, ...]:
    """Return the links of a request.

    Raises:
        HandlerError: BAD_REQUEST; malformed, too many or too long.

    Spec: SPEC.md#nexus-link
    """
    values = headers.get_all(names.LINK)
    if not values:
        return ()
    links = _header_value(parse_links, "Nexus-Link", values)
    if len(links) > LINKS:
        raise bad_request(f"a request has at most {LINKS} links, this one has {len(links)}")
    for link in links:
        if len(link.url) + len(link.type) > LINK_BYTES:
            raise bad_request(f"a link is over the limit of {LINK_BYTES} bytes")
    return tuple(links)


def own_headers(headers: Headers) -> dict[str, str]:
    """Return the headers that are the caller's own.

    Raises:
        HandlerError: BAD_REQUEST; together they are over the limit.
    """
    own = {
        name: value
        for name, value in headers.items()
        if not name.startswith(_PROTOCOL_PREFIXES) and name not in _NOT_THE_CALLERS
    }
    size = sum(map(len, own)) + sum(map(len, own.values()))
    if size > USER_HEADER_BYTES:
        raise bad_request(
            f"the headers have {size} bytes, over the limit of {USER_HEADER_BYTES} bytes"
        )
    return own


def _callback(scope: Scope, headers: Headers, policy: EgressPolicy) -> Registration | None:
    values = query_values(scope).get("callback")
    if not values or not values[0]:
        return None
    url = values[0]
    if len(url) > CALLBACK_URL_BYTES:
        raise bad_request(f"the callback URL is over the limit of {CALLBACK_URL_BYTES} bytes")
    destination = check_callback_url(url, policy).name
    sent = callback_headers(headers)
    size = sum(map(len, sent)) + sum(map(len, sent.values()))
    if size > CALLBACK_HEADER_BYTES:
        raise bad_request(
            f"the Nexus-Callback- headers have {size} bytes, over the limit of "
            f"{CALLBACK_HEADER_BYTES} bytes"
        )
    check_callback_headers(sent)
    return Registration(url, destination, sent)


def _request_id(headers: Headers) -> str:
    request_id = headers.get(names.REQUEST_ID)
    if not request_id:
        return str(uuid.uuid4())
    if len(request_id) > _REQUEST_ID_BYTES:
        raise bad_request(f"Nexus-Request-Id is over the limit of {_REQUEST_ID_BYTES} bytes")
    return request_id


def _wait_seconds(prefer: str, request_timeout: float | None) -> float:
    """Return the seconds of `Prefer: wait=N` (RFC 7240); what cannot be read is ignored."""
    match = _PREFER_WAIT.search(prefer)
    return 0.0 if match is None else _bounded_wait(float(match[1]), request_timeout)


def _bounded_wait(seconds: float, request_timeout: float | None) -> float:
    most = _MOST_WAIT_SECONDS
    if request_timeout is not None:
        most = min(most, request_timeout - _REQUEST_MARGIN_SECONDS)
    return max(0.0, min(seconds, most))


def _header_value(parse: Callable[[V], T], name: str, value: V) -> T:
    try:
        return parse(value)
    except InvalidWireValue as error:
        raise bad_request(f"{name}: {error}") from None
