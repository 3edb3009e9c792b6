"""The Nexus RPC gateway: the ASGI app, and the command that serves it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.app import create_app
    from gateway.runtime import Gateway

__all__ = ["Gateway", "create_app"]


def __getattr__(name: str) -> Any:
    # The server takes a second to import, which the commands that only call one need not wait for.
    if name == "create_app":
        from gateway.app import create_app

        return create_app
    if name == "Gateway":
        from gateway.runtime import Gateway

        return Gateway
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
