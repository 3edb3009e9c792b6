"""The route on which the operations that handlers called elsewhere come back."""

from nexusrpc import HandlerError, HandlerErrorType
from starlette.requests import Request

from clients.callback_tokens import CallbackTokenInvalid
from clients.sender import MAX_RESPONSE_BYTES
from gateway.asgi import Answer, read_body
from gateway.error_responses import bad_request
from gateway.runtime import Gateway
from handlers.outgoing_calls import CALLBACK_TOKEN_HEADER
from nexus_spec import Headers, parse_completion


async def receive_completion(gateway: Gateway, request: Request) -> Answer:
    """Take the completion of a call that an operation of this gateway made.

    The signed token that the callback brings back is all that counts: it is no API key that a
    stranger has to know, and it opens nothing but this one call.

    Raises:
        HandlerError: UNAUTHENTICATED; the token is missing or was not made here. BAD_REQUEST; what
            came is no completion. NOT_FOUND; the operation that made the call is gone.
        InvalidWireValue: As BAD_REQUEST.

    Spec: SPEC.md#callback-urls
    """
    headers = Headers.from_raw(request.scope["headers"])
    # Before anything is refused: a connection that is closed on a sender loses the answer.
    body = await read_body(request.receive, MAX_RESPONSE_BYTES)
    completions = gateway.parts.completions
    try:
        call = await completions.call_of(headers.get(CALLBACK_TOKEN_HEADER, ""))
    except CallbackTokenInvalid:
        raise HandlerError(
            "the callback's token is missing or not valid", type=HandlerErrorType.UNAUTHENTICATED
        ) from None
    if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise bad_request("a completion is sent without Content-Encoding")
    if not await completions.take(call, parse_completion(headers, body)):
        raise HandlerError(
            "the operation that made this call is gone", type=HandlerErrorType.NOT_FOUND
        )
    return Answer(200)
