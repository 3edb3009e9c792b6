"""A start on the wire: what its request carries, and which answers count."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from nexusrpc import Content, Link

from clients.endpoint import Seconds
from clients.error_decoding import error_of_response
from clients.errors import MalformedResponse
from clients.sender import SentResponse
from nexus_spec import (
    InvalidWireValue,
    OperationState,
    format_link,
    parse_links,
    parse_operation_info,
)
from nexus_spec.headers import CALLBACK_PREFIX, CONTENT_PREFIX, LINK, REQUEST_ID

__all__ = ["StartOptions", "judge_start", "links_of", "start_headers"]

_LOG = logging.getLogger(__name__)


class StartOptions(TypedDict, total=False):
    """The keyword arguments of `NexusClient.start` and `NexusClient.execute`."""

    service: type | str | None
    request_id: str | None
    operation_timeout: Seconds | None
    wait: Seconds | None
    callback: str | None
    callback_headers: Mapping[str, str] | None
    links: Sequence[Link]
    headers: Mapping[str, str] | None


def start_headers(
    *,
    request_id: str,
    content: Content,
    callback_headers: Mapping[str, str] | None,
    links: Sequence[Link],
    wait: float,
) -> list[tuple[str, str]]:
    """Return the headers of a start that are the same for each of its attempts.

    `wait` is in seconds, rounded up to whole ones; 0 asks for nothing.

    Raises:
        InvalidWireValue: a link cannot be sent.

    Spec: SPEC.md#start-operation
    """
    headers = [(REQUEST_ID, request_id)]
    described = ((name.lower(), value) for name, value in content.headers.items())
    # A serializer speaks for the body; other headers are not its business.
    headers += [(name, value) for name, value in described if name.startswith(CONTENT_PREFIX)]
    headers += [(CALLBACK_PREFIX + name, value) for name, value in (callback_headers or {}).items()]
    headers += [(LINK, format_link(link)) for link in links]
    if wait:
        headers.append(("prefer", f"wait={math.ceil(wait)}"))
    return headers


def judge_start(response: SentResponse) -> Exception | None:
    """Accept 200, and 201 with a token and the state running; return the error of any other answer.

    Spec: SPEC.md#start-operation
    """
    if response.status == 200:
        return None
    if response.status != 201:
        return error_of_response(response) or MalformedResponse(
            f"a start is answered 200 or 201, not {response.status}", status=response.status
        )
    try:
        info = parse_operation_info(response.body)
    except InvalidWireValue as error:
        malformed = MalformedResponse(f"status 201: {error}", status=201)
        malformed.__cause__ = error
        return malformed
    if info.state is not OperationState.RUNNING:
        return MalformedResponse(
            f"status 201 with the state {info.state.value!r} instead of 'running'", status=201
        )
    return None


def links_of(response: SentResponse) -> tuple[Link, ...]:
    """Return the links of an answer; malformed ones are logged and left out.

    Spec: SPEC.md#nexus-link
    """
    try:
        return tuple(parse_links(response.headers.get_all(LINK)))
    except InvalidWireValue as error:
        # The operation runs: its token must not be lost over a reference that nobody needs to act.
        _LOG.warning("the links of a start's answer are ignored: %s", error)
        return ()
