"""The settings: read once, from options, environment, file and defaults, in this order."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from callbacks.delivery import DeliverySettings
from callbacks.egress import AllowRule, EgressPolicy
from callbacks.retry_schedule import RetryPolicy
from handlers.engine import EngineSettings
from nexus_spec import NexusError

ENVIRONMENT_PREFIX = "NEXUS_GATEWAY_"


class InvalidSettings(NexusError):
    """A setting cannot be used; the message names it and says why."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointSettings(_Section):
    """One named endpoint."""

    targets: list[str] = Field(default_factory=list)


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


class CallbackSettings(_Section):
    """How completions are delivered."""

    allow: list[AllowRuleSettings] = Field(default_factory=list)
    attempt_timeout_seconds: float = Field(default=10.0, gt=0)
    max_age_seconds: float = Field(default=72 * 3600.0, gt=0)
    per_destination: int = Field(default=64, ge=1)


class Settings(BaseSettings):
    """Everything that can be set; the command's options have the same names.

    Environment variables are these names with the prefix `NEXUS_GATEWAY_`; a section's are joined
    by two underscores, as in `NEXUS_GATEWAY_CALLBACKS__MAX_AGE_SECONDS`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    targets: list[str] = Field(default_factory=list)
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    database: str = "sqlite:///data/nexus.db"
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    allow_private_callbacks: bool = False
    allow_unauthenticated: bool = False
    public_url: str | None = None
    drain_seconds: float = Field(default=10.0, ge=0)
    cleanup_seconds: float = Field(default=60.0, gt=0)
    handler_threads: int = Field(default=32, ge=1)
    step_threads: int = Field(default=32, ge=1)
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings)

    @field_validator("public_url")
    @classmethod
    def _is_http_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return url.rstrip("/") if url is not None else None

    @property
    def egress(self) -> EgressPolicy:
        """Which callback URLs may be called."""
        rules = [AllowRule(r.host, r.port, r.insecure, r.private) for r in self.callbacks.allow]
        return EgressPolicy(allow_private=self.allow_private_callbacks, allow=tuple(rules))

    @property
    def delivery(self) -> DeliverySettings:
        """How completions are delivered."""
        return DeliverySettings(
            retry=RetryPolicy(max_age=timedelta(seconds=self.callbacks.max_age_seconds)),
            attempt_timeout_seconds=self.callbacks.attempt_timeout_seconds,
            per_destination=self.callbacks.per_destination,
        )

    @property
    def engine(self) -> EngineSettings:
        """How much the engine may use."""
        return EngineSettings(
            handler_threads=self.handler_threads,
            step_threads=self.step_threads,
            cleanup_seconds=self.cleanup_seconds,
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
    if config is not None and not config.is_file():
        raise InvalidSettings(f"there is no configuration file {config}")

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
            sources: list[PydanticBaseSettingsSource] = [init_settings]
            if environment:
                sources.append(env_settings)
            if config is not None:
                sources.append(YamlConfigSettingsSource(settings_cls, config))
            return tuple(sources)

    try:
        return FromEverywhere(**given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise InvalidSettings("\n".join(lines)) from error
    except Exception as error:  # the sources raise what their parsers raise
        raise InvalidSettings(f"{config or 'environment'}: {error}") from error
