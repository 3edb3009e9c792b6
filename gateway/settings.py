"""The settings: read once, from options, environment, file and defaults, in this order."""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from callbacks.breaker import BreakerPolicy
from callbacks.database import InvalidDatabaseUrl, check_url
from callbacks.dead_letters import Notice
from callbacks.delivery import DeliverySettings
from callbacks.delivery_rules import DeliveryRule, DeliveryRules
from callbacks.egress import AllowRule, EgressPolicy, Webhook
from callbacks.errors import UrlRefused
from callbacks.leases import LEASE_SECONDS
from callbacks.proxies import Proxies, read_proxies
from callbacks.retry_schedule import PERMANENT_STATUSES, RetryPolicy
from clients.endpoint import check_base_url
from handlers.engine_settings import EngineSettings
from handlers.outgoing_calls import RemoteEndpoint
from nexus_spec import NexusError, is_header_value

ENVIRONMENT_PREFIX = "NEXUS_GATEWAY_"

_CENTURY_SECONDS = 100 * 365 * 24 * 3600.0

# Read by the commands that call a gateway, not by the one that serves.
_OF_CALLERS = frozenset({"API_KEY", "ENDPOINT", "URL"})


class InvalidSettings(NexusError):
    """A setting cannot be used; the message names it and says why."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: object) -> object:
    """Read a list from text: JSON, or words between spaces or commas."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return value.replace(",", " ").split()
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None


Targets = Annotated[list[str], NoDecode, BeforeValidator(_listed)]


class EndpointSettings(_Section):
    """One named endpoint: served here by `targets`, or served elsewhere, at `url`.

    The latter is what `ctx.call(..., endpoint="NAME")` calls. `callbacks: never` says that it
    cannot reach this gateway, so that its results are asked for.
    """

    targets: Targets = Field(default_factory=list)
    url: str | None = None
    api_key: SecretStr | None = None
    callbacks: Literal["auto", "never"] = "auto"

    @field_validator("url")
    @classmethod
    def _is_base_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_base_url(url)
        return url

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        value = None if key is None else key.get_secret_value()
        if value is not None and not (value and value.isascii() and is_header_value(value)):
            raise ValueError("holds characters that a header cannot carry, or none at all")
        return key

    @model_validator(mode="after")
    def _is_here_or_there(self) -> Self:
        if self.url is not None and self.targets:
            raise ValueError("has targets, which are served here, and the url of another server")
        if self.url is None and (self.api_key is not None or self.callbacks != "auto"):
            raise ValueError("api_key and callbacks are for an endpoint with a url")
        return self


class AllowRuleSettings(_Section):
    """A kind of destination that callbacks may call; see `callbacks.egress.AllowRule`."""

    host: str
    port: int | None = None
    insecure: bool = False
    private: bool = False

    @field_validator("host")
    @classmethod
    def _is_a_pattern(cls, host: str) -> str:
        AllowRule(host)
        return host


class DeliveryRuleSettings(_Section):
    """The schedule and the bounds of deliveries; see `callbacks.delivery_rules.DeliveryRule`."""

    attempt_timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    max_age_seconds: float = Field(default=72 * 3600.0, gt=0, le=_CENTURY_SECONDS)
    first_retry_seconds: float = Field(default=1.0, gt=0, le=86_400)
    longest_retry_seconds: float = Field(default=3600.0, gt=0, le=86_400)
    permanent_statuses: list[Annotated[int, Field(ge=300, le=599)]] = Field(
        default_factory=lambda: sorted(PERMANENT_STATUSES)
    )
    per_destination: int = Field(default=64, ge=1)
    per_second: float | None = Field(default=None, gt=0)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_seconds: float = Field(default=60.0, gt=0, le=86_400)
    breaker_longest_seconds: float = Field(default=900.0, gt=0, le=86_400)

    @property
    def rule(self) -> DeliveryRule:
        """The same as delivery takes it."""
        return DeliveryRule(
            retry=RetryPolicy(
                first=timedelta(seconds=self.first_retry_seconds),
                cap=timedelta(seconds=self.longest_retry_seconds),
                max_age=timedelta(seconds=self.max_age_seconds),
            ),
            permanent_statuses=frozenset(self.permanent_statuses),
            breaker=BreakerPolicy(
                failures=self.breaker_failures,
                first=timedelta(seconds=self.breaker_seconds),
                cap=timedelta(seconds=self.breaker_longest_seconds),
            ),
            attempt_timeout_seconds=self.attempt_timeout_seconds,
            concurrency=self.per_destination,
            per_second=self.per_second,
        )


class DestinationSettings(DeliveryRuleSettings):
    """How some destinations are delivered to; what is not said is as for all the others."""

    host: str
    port: int | None = Field(default=None, ge=1, le=65535)

    @field_validator("host")
    @classmethod
    def _is_a_pattern(cls, host: str) -> str:
        AllowRule(host)
        return host


class CallbackSettings(DeliveryRuleSettings):
    """How completions are delivered, and where to."""

    allow: list[AllowRuleSettings] = Field(default_factory=list)
    concurrency: int = Field(default=1024, ge=1)
    dead_letter_webhook: str | None = None
    destinations: list[DestinationSettings] = Field(default_factory=list)
    proxy_from_environment: bool = False
    _proxies: Proxies = PrivateAttr(default_factory=Proxies)

    @field_validator("dead_letter_webhook")
    @classmethod
    def _can_be_called(cls, url: str | None) -> str | None:
        if url is not None:
            try:
                Webhook(url)
            except UrlRefused as error:
                raise ValueError(str(error).removeprefix("callback URL: ")) from None
        return url

    @model_validator(mode="after")
    def _read_environment(self) -> Self:
        if self.proxy_from_environment:
            self._proxies = read_proxies(os.environ)
        return self

    @property
    def proxies(self) -> Proxies:
        """What callbacks go through: what the environment said when the settings were read."""
        return self._proxies

    @property
    def rules(self) -> DeliveryRules:
        """The rule of every destination."""
        general = {name: getattr(self, name) for name in DeliveryRuleSettings.model_fields}
        rules = []
        for each in self.destinations:
            said = {name: getattr(each, name) for name in each.model_fields_set}
            rule = DeliveryRuleSettings.model_validate(
                {k: v for k, v in (general | said).items() if k in general}
            ).rule
            rules.append((each.host, each.port, rule))
        return DeliveryRules(self.rule, rules)


class Settings(BaseSettings):
    """Everything that can be set; the command's options have the same names.

    Environment variables are these names with the prefix `NEXUS_GATEWAY_`; a section's are joined
    by two underscores, as in `NEXUS_GATEWAY_CALLBACKS__MAX_AGE_SECONDS`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # `${PORT:-}` in a compose file means that nothing was said
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    targets: Targets = Field(default_factory=list)
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8080, ge=0, le=65535)
    database: str = "sqlite:///data/nexus.db"
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    allow_private_callbacks: bool = False
    allow_unauthenticated: bool = False
    public_url: str | None = None
    drain_seconds: float = Field(default=10.0, ge=0)
    cleanup_seconds: float = Field(default=60.0, gt=0)
    lease_seconds: float = Field(default=LEASE_SECONDS, ge=1)
    suspend_after_seconds: float = Field(default=5.0, ge=0)
    poison_after: int = Field(default=5, ge=2)
    retention_seconds: float = Field(default=7 * 24 * 3600.0, ge=0, le=_CENTURY_SECONDS)
    handler_threads: int = Field(default=32, ge=1)
    step_threads: int = Field(default=32, ge=1)
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings)

    @field_validator("database")
    @classmethod
    def _is_database_url(cls, url: str) -> str:
        try:
            check_url(url)
        except InvalidDatabaseUrl as error:
            raise ValueError(str(error)) from error
        return url

    @field_validator("public_url")
    @classmethod
    def _is_http_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return url.rstrip("/") if url is not None else None

    @property
    def remote_endpoints(self) -> dict[str, RemoteEndpoint]:
        """The endpoints that handlers may call."""
        return {
            name: RemoteEndpoint(
                url=endpoint.url,
                api_key=None if endpoint.api_key is None else endpoint.api_key.get_secret_value(),
                callbacks=endpoint.callbacks == "auto",
            )
            for name, endpoint in self.endpoints.items()
            if endpoint.url is not None
        }

    @property
    def egress(self) -> EgressPolicy:
        """Which callback URLs may be called."""
        rules = [AllowRule(r.host, r.port, r.insecure, r.private) for r in self.callbacks.allow]
        return EgressPolicy(allow_private=self.allow_private_callbacks, allow=tuple(rules))

    @property
    def delivery(self) -> DeliverySettings:
        """How completions are delivered."""
        rules = self.callbacks.rules
        notice = None
        if self.notices is not None:
            destination = self.notices.destination.name
            max_age_ms = rules.of(destination).max_age_ms
            notice = Notice(self.notices.url, destination, max_age_ms)
        return DeliverySettings(rules=rules, concurrency=self.callbacks.concurrency, notice=notice)

    @property
    def notices(self) -> Webhook | None:
        """Where the operator is told of completions that are given up."""
        url = self.callbacks.dead_letter_webhook
        return None if url is None else Webhook(url)

    @property
    def engine(self) -> EngineSettings:
        """How much the engine may use."""
        return EngineSettings(
            handler_threads=self.handler_threads,
            step_threads=self.step_threads,
            cleanup_seconds=self.cleanup_seconds,
            suspend_after_seconds=self.suspend_after_seconds,
            poison_after=self.poison_after,
            retention=timedelta(seconds=self.retention_seconds),
        )


def read_settings(
    options: dict[str, Any], config: Path | None = None, *, environment: bool = True
) -> Settings:
    """Return the settings: option, environment, file, default, the first that says something.

    Args:
        options: What the command line gave; None values count as not given.
        config: A YAML file.
        environment: Whether environment variables count.

    Raises:
        InvalidSettings: Something is unknown or unusable; the message has one line for each.
    """
    given = {name: value for name, value in options.items() if value is not None}
    in_file = {} if config is None else _read_file(config)

    class FromEverywhere(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from_file = InitSettingsSource(settings_cls, init_kwargs=in_file)
            if not environment:
                return init_settings, from_file
            return init_settings, _Environment(settings_cls), from_file

    try:
        return FromEverywhere(**given)
    except ValidationError as error:
        variables = os.environ if environment else {}
        lines = [
            f"{_where(problem, given, variables, config)}: {_said(problem)}"
            for problem in error.errors(include_url=False)
        ]
        raise InvalidSettings("\n".join(lines)) from error
    except SettingsError as error:
        raise InvalidSettings(f"{_undecodable(error)}: is not valid JSON") from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that look like settings and are none: misspelt ones, most likely.

    They are no errors: a container platform may set variables of this prefix for reasons of its
    own, Kubernetes for one, where a service is called `nexus-gateway`.
    """
    known = _OF_CALLERS | {name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX)
        and name.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0] not in known
        and not name.startswith((f"{ENVIRONMENT_PREFIX}SERVICE_", f"{ENVIRONMENT_PREFIX}PORT_"))
    )


class _Environment(EnvSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        # Kubernetes sets NEXUS_GATEWAY_PORT=tcp://10.0.0.1:80 in every pod beside a service that
        # is called nexus-gateway; that is nobody's setting.
        port = f"{ENVIRONMENT_PREFIX}PORT".lower()
        self.env_vars = {
            name: value
            for name, value in self.env_vars.items()
            if name != port or not str(value).startswith("tcp://")
        }


def _read_file(config: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidSettings(f"there is no configuration file {config}") from None
    except OSError as error:
        raise InvalidSettings(f"cannot read {config}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{config}: is not text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise InvalidSettings(f"{config}{line}: is not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InvalidSettings(f"{config}: is not valid YAML: {_one_line(error)}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise InvalidSettings(f"{config}: has to hold names and values, such as `port: 8080`")
    return document


def _where(
    problem: ErrorDetails,
    given: Mapping[str, Any],
    variables: Mapping[str, str],
    config: Path | None,
) -> str:
    """Name a setting as the person who set it would find it."""
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if path and path[0] in given:
        return name
    for length in range(len(path), 0, -1):
        variable = ENVIRONMENT_PREFIX + "__".join(path[:length]).upper()
        if variables.get(variable):
            return variable
    return name if config is None else f"{config}: {name}"


def _said(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such setting"
    return _one_line(problem["msg"].removeprefix("Value error, "))


def _undecodable(error: SettingsError) -> str:
    for field in Settings.model_fields:
        if f'"{field}"' in str(error):
            return ENVIRONMENT_PREFIX + field.upper()
    return "environment"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
