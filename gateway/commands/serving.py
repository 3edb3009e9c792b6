"""`serve`, `check-config`, `openapi` and `database migrate`: what reads the settings."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from callbacks.database import sqlite_path
from gateway.api_keys import has_valid_key
from gateway.app import create_app
from gateway.loading import load_target
from gateway.logs import set_up_logs
from gateway.openapi import openapi_json, openapi_yaml
from gateway.runtime import registry
from gateway.schema import migrate
from gateway.server import check_bind
from gateway.server import serve as run_server
from gateway.settings import InvalidSettings, Settings, read_settings, unknown_variables
from handlers.services import ServiceRegistry

logger = logging.getLogger(__name__)

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET]...",
        help="MODULE:ATTRIBUTE, or a file: ./orders/services.py:services. The attribute is a "
        "service handler instance or a list of them.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with settings.", show_default=False)
]
Database = Annotated[
    str | None,
    typer.Option(help="sqlite:///PATH. [default: sqlite:///data/nexus.db]", show_default=False),
]


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
        raise InvalidSettings(
            "there is nothing to serve: name a TARGET, such as my_services:services"
        )
    for name in unknown_variables(os.environ):
        logger.warning("there is no such setting, so it is ignored: %s", name)
    # The database is only looked into: another gateway may serve it.
    check_bind(settings, has_keys=has_valid_key(sqlite_path(settings.database)))
    run_server(create_app(services, endpoints=endpoints, settings=settings), settings)


def check_config(config: Config = None, targets: Targets = None) -> None:
    """Check settings and targets, and say what would be served."""
    settings = _settings(config, targets=targets or None)
    sqlite_path(settings.database)
    for name in unknown_variables(os.environ):
        typer.echo(f"warning: there is no such setting, so it is ignored: {name}", err=True)
    for hosted in _registry(settings):
        typer.echo(
            f"{hosted.endpoint}: {hosted.service}/{hosted.operation} ({hosted.kind.name.lower()})"
        )
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
    settings = _settings(config, targets=target or None)
    hosted = _registry(settings)
    if service is not None and service not in {h.service for h in hosted}:
        raise InvalidSettings(
            f"there is no service {service!r}; name what serves it with --target or --config"
        )
    if not list(hosted):
        typer.echo(openapi_yaml().decode(), nl=False)
        return
    typer.echo(openapi_json(hosted, only_service=service).decode())


def migrate_database(config: Config = None, database: Database = None) -> None:
    """Create the database's schema, or bring it up to date."""
    settings = _settings(config, database=database)
    path = sqlite_path(settings.database)
    typer.echo(f"{path} has schema version {migrate(path)}")


def _settings(config: Path | None, **options: Any) -> Settings:
    return read_settings(options, config)


def _load(settings: Settings) -> tuple[list[Any], dict[str, list[Any]]]:
    services = [instance for target in settings.targets for instance in load_target(target)]
    endpoints = {
        name: [instance for target in endpoint.targets for instance in load_target(target)]
        for name, endpoint in settings.endpoints.items()
    }
    return services, endpoints


def _registry(settings: Settings) -> ServiceRegistry:
    return registry(*_load(settings))
