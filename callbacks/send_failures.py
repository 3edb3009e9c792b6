"""What aiohttp raises where a request gets no answer, and how it is told to people."""

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

__all__ = ["SEND_FAILURES", "reason_of"]

SEND_FAILURES = (aiohttp.ClientError, aiohttp.EofStream, HttpProcessingError, OSError, ValueError)
"""Whatever a peer does and whatever bytes it sends, aiohttp raises one of these."""

_REASON_CHARACTERS = 200


def reason_of(error: Exception, url: URL) -> str:
    """Say in one line what happened, without the URL, whose query may hold a secret.

    What the peer sent is quoted in part at the most.
    """
    match error:
        case aiohttp.ClientHttpProxyError():
            text = f"the proxy answered {error.status}"
        case aiohttp.ClientResponseError():
            text = f"malformed answer: {error.message}"
        case aiohttp.ServerDisconnectedError():  # its text is whatever part of an answer came
            text = "disconnected without an answer"
        case _:
            text = str(error).replace(str(url), "the URL") or type(error).__name__
    return "".join(filter(str.isprintable, " ".join(text.split())))[:_REASON_CHARACTERS]
