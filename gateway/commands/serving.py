"""`serve`, `check-config`, `openapi` and `database migrate`: what reads the settings.

The gateway itself is imported where it is used: that takes a second, for which the commands that
only call one must not wait.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.options import Config, Database, Targets
from nexus_spec import NexusError

if TYPE_CHECKING:
    from gateway.settings import Settings
    from handlers.services import ServiceRegistry

logger = logging.getLogger(__name__)


class NothingToServe(NexusError):
    """No service was named, or not the one that was asked for."""


def serve(
    targets: Targets = None,
    config: Config = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 picks a free one. [default: 8080]")
    ] = None,
    database: Database = None,
    log_format: Annotated[str | None, typer.Option(help="text or json. [default: text]")] = None,
    allow_private_callbacks: Annotated[
        bool | None,
        typer.Option(
            "--allow-private-callbacks",
            help="Deliver completions to loopback and private addresses too.",
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool | None,
        typer.Option("--allow-unauthenticated", help="Serve without API keys beyond this machine."),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="The address under which callers reach the gateway.")
    ] = None,
) -> None:
    """Serve operations over the Nexus protocol."""
    from gateway.api_keys import has_valid_key
    from gateway.app import create_app
    from gateway.logs import set_up_logs
    from gateway.server import check_bind
    from gateway.server import serve as run_server
    from gateway.settings import unknown_variables

    settings = _settings(
        config,
        targets=targets or None,
        host=host,
        port=port,
        database=database,
        log_format=log_format,
        allow_private_callbacks=allow_private_callbacks,
        allow_unauthenticated=allow_unauthenticated,
        public_url=public_url,
    )
    set_up_logs(settings.log_format, settings.log_level)
    services, endpoints = _load(settings)
    if not services and not endpoints:
        raise NothingToServe(
            "there is nothing to serve: name a TARGET, such as my_services:services"
        )
    for name in unknown_variables(os.environ):
        logger.warning("there is no such setting, so it is ignored: %s", name)
    # The database is only looked into: another gateway may serve it.
    check_bind(settings, has_keys=has_valid_key(settings.database))
    run_server(create_app(services, endpoints=endpoints, settings=settings), settings)


def check_config(config: Config = None, targets: Targets = None) -> None:
    """Check settings and targets, and say what would be served."""
    from gateway.settings import unknown_variables

    settings = _settings(config, targets=targets or None)
    for name in unknown_variables(os.environ):
        typer.echo(f"warning: there is no such setting, so it is ignored: {name}", err=True)
    lines = [
        f"{hosted.endpoint}: {hosted.service}/{hosted.operation} ({hosted.kind.name.lower()})"
        for hosted in _registry(settings)
    ]
    for line in sorted(lines):
        typer.echo(line)
    for name, remote in sorted(settings.remote_endpoints.items()):
        # Without a public URL nobody can call back.
        asked = settings.public_url is None or not remote.callbacks
        how = "is asked for results" if asked else "calls back"
        typer.echo(f"{name}: for handlers to call, at {remote.url} ({how})")
    if not lines:
        typer.echo("warning: there is nothing to serve yet: name a TARGET", err=True)
    typer.echo("the configuration is good")


def openapi(
    service: Annotated[
        str | None, typer.Argument(help="Add only this service's operations.")
    ] = None,
    config: Config = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="What to add; as for serve.")
    ] = None,
) -> None:
    """Print the contract: the gateway's own routes, and the operations of the services given."""
    from gateway.openapi import openapi_json, openapi_yaml

    settings = _settings(config, targets=target or None)
    hosted = _registry(settings)
    if service is not None and service not in {h.service for h in hosted}:
        raise NothingToServe(
            f"there is no service {service!r}; name what serves it with --target or --config"
        )
    if not list(hosted):
        typer.echo(openapi_yaml().decode(), nl=False)
        return
    typer.echo(openapi_json(hosted, only_service=service).decode())


def migrate_database(config: Config = None, database: Database = None) -> None:
    """Create the database's schema, or bring it up to date."""
    from callbacks.database import shown_database
    from gateway.schema import migrate

    url = _settings(config, database=database).database
    version = migrate(url)
    typer.echo(f"{shown_database(url)} has schema version {version}")


def _settings(config: Path | None, **options: Any) -> "Settings":
    from gateway.settings import read_settings

    return read_settings(options, config)


def _load(settings: "Settings") -> tuple[list[Any], dict[str, list[Any]]]:
    from gateway.loading import load_target

    services = [instance for target in settings.targets for instance in load_target(target)]
    endpoints = {
        name: [instance for target in endpoint.targets for instance in load_target(target)]
        for name, endpoint in settings.endpoints.items()
        if endpoint.url is None
    }
    return services, endpoints


def _registry(settings: "Settings") -> "ServiceRegistry":
    from gateway.runtime import registry

    return registry(*_load(settings))
