"""Completions: how the outcome of an operation travels to its caller's callback URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from nexusrpc import Content, Link, OperationError, OperationErrorState

from nexus_spec import headers as names
from nexus_spec.errors import InvalidWireValue
from nexus_spec.failure import (
    OPERATION_ERROR,
    Failure,
    error_of_failure,
    failure_of_error,
    failure_to_bytes,
    metadata_type,
    parse_failure,
)
from nexus_spec.headers import Headers, content_headers
from nexus_spec.links import format_link, parse_links
from nexus_spec.operation import OperationState, parse_operation_state
from nexus_spec.operation_path import check_token
from nexus_spec.timestamps import (
    format_http_date,
    format_rfc3339,
    parse_http_date,
    parse_rfc3339,
)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The outcome of an operation, with what a caller needs that never saw its start answered.

    `content` is the result of a succeeded operation, `failure` the error of a failed or canceled
    one. `token` is empty and the times are None where the sender left them out; sent completions
    have both. Times are aware. The token stays out of the representation.

    Raises:
        ValueError: the state is `running`, or the outcome does not fit it.

    Spec: SPEC.md#callback-urls
    """

    state: OperationState
    token: str = field(repr=False)
    start_time: datetime | None
    close_time: datetime | None
    links: tuple[Link, ...] = ()
    content: Content | None = field(default=None, repr=False)
    failure: Failure | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that have no meaning."""
        if self.state is OperationState.RUNNING:
            raise ValueError("a completion's state is succeeded, failed or canceled")
        succeeded = self.state is OperationState.SUCCEEDED
        if (self.failure if succeeded else self.content) is not None:
            raise ValueError("a completion has content if it succeeded, else a failure")

    def error(self) -> OperationError:
        """Return the failed or canceled outcome as the exception that stands for it.

        The state is the completion's own, whatever its failure says.

        Raises:
            ValueError: the operation succeeded.
            InvalidWireValue: the failure is typed but lacks the details that its type requires.
        """
        if self.state is OperationState.SUCCEEDED:
            raise ValueError("the operation succeeded: it has no error")
        error = error_of_failure(self.failure, state=self.state.value)
        if isinstance(error, OperationError) and error.state.value == self.state.value:
            return error
        # A HandlerError, or an outcome of another state: what the operation ended by.
        outcome = OperationError(
            error.message or f"operation {self.state.value}",
            state=OperationErrorState(self.state.value),
            original_failure=self.failure,
        )
        outcome.__cause__ = error
        return outcome


def render_completion(c: Completion) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers and the body of a completion, all but the caller's own headers.

    Of the content's headers only type and encoding are sent: some readers never finish an
    operation whose result carries others. A failure is sent typed.

    Raises:
        InvalidWireValue: the token or a link cannot be sent, or the failure is malformed.
        ValueError: a time is naive.

    Spec: SPEC.md#callback-urls
    """
    headers = [("Nexus-Operation-State", c.state.value)]
    if c.token:
        check_token(c.token)
        headers.append(("Nexus-Operation-Token", c.token))
    if c.start_time is not None:
        headers.append(("Nexus-Operation-Start-Time", format_http_date(c.start_time)))
    if c.close_time is not None:
        headers.append(("Nexus-Operation-Close-Time", format_rfc3339(c.close_time)))
    headers.extend(("Nexus-Link", format_link(link)) for link in c.links)
    if c.state is not OperationState.SUCCEEDED:
        headers.append(("Content-Type", "application/json"))
        return headers, failure_to_bytes(failure_of_error(c.error()))
    if c.content is None:
        return headers, b""
    described = Headers(c.content.headers)
    if content_type := described.get(names.CONTENT_TYPE):
        headers.append(("Content-Type", content_type))
    if encoding := described.get(names.CONTENT_ENCODING):
        headers.append(("Content-Encoding", encoding))
    return headers, c.content.data


def parse_completion(headers: Headers, body: bytes) -> Completion:
    """Read a completion. A typed body decides between `failed` and `canceled`, else the header.

    Token and times are optional, as the specification has them.

    Raises:
        InvalidWireValue: the state is missing, unknown or `running`; the token, a date or a link
            is malformed; or the body of a failed or canceled operation is no readable Failure.

    Spec: SPEC.md#callback-urls
    """
    state = _state(headers)
    token = headers.get(names.OPERATION_TOKEN, "")
    if token:
        check_token(token)
    start_time = headers.get(names.OPERATION_START_TIME)
    close_time = headers.get(names.OPERATION_CLOSE_TIME)
    content, failure = None, None
    if state is OperationState.SUCCEEDED:
        content = Content(headers=content_headers(headers), data=body)
    else:
        if not body:
            raise InvalidWireValue("the body is empty: expected a JSON Failure, at least {}")
        failure = parse_failure(body)
        # Also refuses typed Failures without their details, for which the sender must be told.
        error = error_of_failure(failure, state=state.value)
        if isinstance(error, OperationError) and metadata_type(failure) == OPERATION_ERROR:
            state = OperationState(error.state.value)
    return Completion(
        state=state,
        token=token,
        start_time=parse_http_date(start_time) if start_time is not None else None,
        close_time=parse_rfc3339(close_time) if close_time is not None else None,
        links=tuple(parse_links(headers.get_all(names.LINK))),
        content=content,
        failure=failure,
    )


def _state(headers: Headers) -> OperationState:
    text = headers.get(names.OPERATION_STATE)
    if text is None:
        raise InvalidWireValue(
            "the header Nexus-Operation-State is missing: expected succeeded, failed or canceled"
        )
    state = parse_operation_state(text)
    if state is OperationState.RUNNING:
        raise InvalidWireValue(
            "a completion with Nexus-Operation-State: running: expected succeeded, failed "
            "or canceled"
        )
    return state
