"""The Nexus RPC gateway: the ASGI app, and the command that serves it."""

from gateway.app import create_app
from gateway.runtime import Gateway

__all__ = ["Gateway", "create_app"]
