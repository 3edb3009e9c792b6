"""The only place where an error becomes an HTTP answer.

| error | answer |
|---|---|
| OperationError | 424, typed Failure, `Nexus-Operation-State` |
| HandlerError | its status by the table, typed Failure |
| InvalidWireValue, refused callback | 400 BAD_REQUEST |
| the database is away | 503 UNAVAILABLE |
| anything else | 500 INTERNAL with a fixed message; the text is in the log only |
"""

import logging

from nexusrpc import HandlerError, HandlerErrorType, OperationError

from callbacks.database import DatabaseUnavailable
from callbacks.errors import CallbackError
from gateway.asgi import Answer
from nexus_spec import InvalidWireValue, failure_of_error, failure_to_bytes, status_of

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = "1"


def error_response(error: Exception) -> Answer:
    """Return the answer for an error.

    Spec: SPEC.md#predefined-failure-types
    """
    match error:
        case OperationError():
            return Answer(
                424,
                [
                    ("Content-Type", "application/json"),
                    ("Nexus-Operation-State", error.state.value),
                ],
                failure_to_bytes(failure_of_error(error)),
            )
        case HandlerError():
            return _handler_error(error)
        case InvalidWireValue() | CallbackError():
            return _handler_error(bad_request(str(error)))
        case DatabaseUnavailable():
            logger.warning("the database is away", extra={"error": str(error)})
            return _handler_error(
                HandlerError("the database is away; try again", type=HandlerErrorType.UNAVAILABLE)
            )
        case _:
            logger.error("unexpected error", exc_info=error)
            return _handler_error(HandlerError("internal error", type=HandlerErrorType.INTERNAL))


def bad_request(message: str) -> HandlerError:
    """Return the error for a request that is not as the protocol wants it."""
    return HandlerError(message, type=HandlerErrorType.BAD_REQUEST)


def _handler_error(error: HandlerError) -> Answer:
    headers = [("Content-Type", "application/json")]
    if error.retryable_override is not None:
        headers.append(("Nexus-Request-Retryable", str(error.retryable_override).lower()))
    status = status_of(error.raw_error_type)
    if status in (429, 503):
        headers.append(("Retry-After", RETRY_AFTER_SECONDS))
    if status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return Answer(status, headers, failure_to_bytes(failure_of_error(error)))
