"""Every route, in the order in which they are tried."""

from collections.abc import Awaitable, Callable

from nexusrpc import HandlerError, HandlerErrorType
from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, NoMatchFound, Route
from starlette.types import Receive, Scope, Send

from gateway import callbacks_api, destinations_api, operators_api
from gateway.access import require
from gateway.asgi import Answer, Disconnected, send_answer
from gateway.callback_routes import receive_completion
from gateway.error_responses import error_response
from gateway.metrics import CONTENT_TYPE, render_metrics
from gateway.nexus_routes import NexusEndpoint, NexusRoute
from gateway.openapi import openapi_json, openapi_yaml
from gateway.roles import Role
from gateway.runtime import Gateway
from handlers.outgoing_calls import CALLBACK_PATH
from nexus_spec import Headers

View = Callable[[Gateway, Request], Awaitable[Answer]]


def all_routes(gateway: Gateway) -> list[BaseRoute]:
    """Return the routes of the app."""
    return [
        NexusRoute(NexusEndpoint(gateway)),
        _route(gateway, "POST", CALLBACK_PATH, receive_completion, None),
        _route(gateway, "GET", "/healthz", health, None),
        _route(gateway, "GET", "/readyz", ready, None),
        _route(gateway, "GET", "/metrics", metrics, Role.OPERATE),
        _route(gateway, "GET", "/openapi.yaml", contract_yaml, Role.CALL),
        _route(gateway, "GET", "/openapi.json", contract_json, Role.CALL),
        _route(gateway, "GET", "/api/v1/services", operators_api.list_services, Role.CALL),
        _route(gateway, "GET", "/api/v1/operations", operators_api.list_operations, Role.OPERATE),
        _route(
            gateway,
            "GET",
            "/api/v1/operations/{token}",
            operators_api.show_operation,
            Role.OPERATE,
        ),
        *(
            _route(gateway, "POST", f"/api/v1/operations/{{token}}/{verb}", view, Role.OPERATE)
            for verb, view in (
                ("cancel", operators_api.cancel_operation),
                ("resume", operators_api.resume_operation),
                ("complete", operators_api.complete_operation),
            )
        ),
        _route(
            gateway,
            "POST",
            "/api/v1/operations/{token}/signals/{name}",
            operators_api.signal_operation,
            Role.OPERATE,
        ),
        *(
            _route(gateway, method, f"/api/v1/{path}", view, Role.OPERATE)
            for method, path, view in (
                ("GET", "callbacks", callbacks_api.list_callbacks),
                ("POST", "callbacks/replay", callbacks_api.replay_callbacks),
                ("GET", "callbacks/{id}", callbacks_api.show_callback),
                ("POST", "callbacks/{id}/replay", callbacks_api.replay_callback),
                ("GET", "destinations", destinations_api.list_destinations),
                ("POST", "destinations/disable", destinations_api.disable_destination),
                ("POST", "destinations/enable", destinations_api.enable_destination),
            )
        ),
        _route(gateway, "GET", "/", welcome, None),
        _AnyPath(_View(gateway, None, unknown_path, None)),
    ]


async def welcome(gateway: Gateway, request: Request) -> Answer:
    """Tell somebody who opens the address in a browser where things are."""
    base = gateway.settings.public_url or str(request.base_url).rstrip("/")
    operations = [f"  POST {base}{operators_api.path_of(hosted)}" for hosted in gateway.services]
    lines = [
        "Nexus RPC gateway",
        "",
        "Operations:",
        *operations,
        "",
        f"All routes, with examples:  {base}/openapi.yaml",
        f"With the services' schemas: {base}/openapi.json",
        f"What is running:            {base}/api/v1/operations",
        "",
    ]
    return Answer(200, [("Content-Type", "text/plain; charset=utf-8")], "\n".join(lines).encode())


async def health(gateway: Gateway, request: Request) -> Answer:
    """The process answers."""
    return _text(200, "ok\n")


async def ready(gateway: Gateway, request: Request) -> Answer:
    """The gateway takes requests: its database answers and it does not drain."""
    if not gateway.is_open or gateway.draining:
        return _text(503, "draining\n")
    await gateway.parts.check_database()
    return _text(200, "ready\n")


async def metrics(gateway: Gateway, request: Request) -> Answer:
    """The numbers, as Prometheus text."""
    return Answer(200, [("Content-Type", CONTENT_TYPE)], await render_metrics(gateway))


async def contract_yaml(gateway: Gateway, request: Request) -> Answer:
    """The contract of every route."""
    return Answer(200, [("Content-Type", "application/yaml")], openapi_yaml())


async def contract_json(gateway: Gateway, request: Request) -> Answer:
    """The contract, with the hosted services' own paths and schemas."""
    return Answer(200, [("Content-Type", "application/json")], openapi_json(gateway.services))


async def unknown_path(gateway: Gateway, request: Request) -> Answer:
    """Refuse a path that is no route, as the protocol's own error."""
    raise HandlerError(
        f"there is nothing at {request.scope['path'][:200]!r}; operations are at "
        "/services/{service}/{operation}",
        type=HandlerErrorType.NOT_FOUND,
    )


def _route(gateway: Gateway, method: str, path: str, view: View, role: Role | None) -> Route:
    return Route(path, endpoint=_View(gateway, method, view, role), include_in_schema=False)


class _AnyPath(BaseRoute):
    """What no other route took; a `Mount` would miss a path that holds a line break."""

    def __init__(self, view: "_View") -> None:
        self._view = view

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.FULL, {}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, dict(path_params))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._view(scope, receive, send)


class _View:
    """An ASGI endpoint that checks method and role and turns every error into an answer."""

    def __init__(self, gateway: Gateway, method: str | None, view: View, role: Role | None) -> None:
        self._gateway = gateway
        self._methods = (method, "HEAD") if method == "GET" else (method,)
        self._view = view
        self._role = role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        try:
            answer = await self._answer(scope, receive)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001  # every error becomes an answer
            answer = error_response(error)
        await send_answer(send, answer, scope["method"])

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        if self._role is not None:
            headers = Headers.from_raw(scope["headers"])
            principal = await self._gateway.parts.access.principal(scope, headers)
            require(principal, self._role)
        if self._methods != (None,) and scope["method"] not in self._methods:
            raise HandlerError(
                f"this path is used with {self._methods[0]}", type=HandlerErrorType.BAD_REQUEST
            )
        return await self._view(self._gateway, Request(scope, receive))


def _text(status: int, text: str) -> Answer:
    return Answer(status, [("Content-Type", "text/plain; charset=utf-8")], text.encode())
