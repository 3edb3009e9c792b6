"""The floor of an inline operation: a JSON echo in bare Starlette.

Served as the gateway is: `uvicorn --workers 1 --loop uvloop --http httptools --no-access-log`.
"""

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def echo(request: Request) -> JSONResponse:
    """Answer with the input."""
    return JSONResponse({"ok": True, "input": json.loads(await request.body())})


app = Starlette(routes=[Route("/bench/echo", echo, methods=["POST"])])
