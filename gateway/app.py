"""The whole wiring on one screen."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nexusrpc.handler import OperationHandlerMiddleware
from starlette.applications import Starlette

from gateway.routes import all_routes
from gateway.runtime import Gateway, registry
from gateway.settings import Settings, read_settings
from gateway.telemetry import Telemetry
from nexus_spec import PayloadSerializer


def create_app(
    services: Sequence[Any] = (),
    *,
    database: str = "sqlite:///data/nexus.db",
    endpoints: Mapping[str, Sequence[Any]] | None = None,
    allow_private_callbacks: bool = False,
    allow_unauthenticated: bool = False,
    public_url: str | None = None,
    settings: Settings | None = None,
    serializer: PayloadSerializer | None = None,
    middleware: Sequence[OperationHandlerMiddleware] = (),
    telemetry: Telemetry | None = None,
) -> Starlette:
    """Return the gateway as an ASGI app, for any ASGI server with lifespan support.

    One process serves one SQLite file, so run it with a single worker.

    Args:
        services: Service handler instances of the endpoint `default`.
        database: `sqlite:///relative/path` or `sqlite:////absolute/path`.
        endpoints: Service handler instances of further endpoints, by name.
        allow_private_callbacks: Deliver completions to loopback and private addresses too.
        allow_unauthenticated: Serve requests without an API key from anywhere.
        public_url: The address under which callers reach the gateway.
        settings: All settings at once; the options above are then not looked at.
        serializer: Reads inputs and writes results; JSON through pydantic by default.
        middleware: nexusrpc middleware around inline and custom operation handlers.
        telemetry: Where spans go, closed with the app; by default what the environment says.

    Raises:
        InvalidService: Something given as a service cannot be served.
        InvalidSettings: An option cannot be used.
    """
    if settings is None:
        settings = read_settings(
            {
                "database": database,
                "allow_private_callbacks": allow_private_callbacks,
                "allow_unauthenticated": allow_unauthenticated,
                "public_url": public_url,
            },
            environment=False,
        )
    gateway = Gateway(
        settings,
        registry(services, endpoints),
        serializer=serializer or PayloadSerializer(),
        middleware=middleware,
        telemetry=telemetry,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.open()
        try:
            yield
        finally:
            await gateway.close()

    app = Starlette(routes=all_routes(gateway), lifespan=lifespan)
    app.state.gateway = gateway
    return app
