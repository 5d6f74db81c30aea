"""Settings, by precedence: command line, RECPARAMS_* variables, a TOML file, defaults."""

import os
from pathlib import Path

from pydantic import SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from recparams_server.settings.access import AccessSettings
from recparams_server.settings.learning import LearningSettings
from recparams_server.settings.rollout import RolloutSettings
from recparams_server.settings.serving import ServingSettings


# Fields come in the order of the bases from right to left: so the help has them.
class Settings(RolloutSettings, LearningSettings, AccessSettings, ServingSettings, BaseSettings):
    """All settings. Raises pydantic.ValidationError on a value out of range."""

    model_config = SettingsConfigDict(
        env_prefix="RECPARAMS_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        # It may be a secret.
        hide_input_in_errors=True,
    )

    @field_validator(
        *("log_level", "log_format", "tracing", "environment", "authorization"),
        *("gates", "rollout", "training_engine", "exploration"),
        mode="before",
    )
    @classmethod
    def _in_lower_case(cls, value: object) -> object:
        """Takes words of a choice however they are written, as in INFO."""
        return value.strip().lower() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("RECPARAMS_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return init_settings, env_settings, *toml

    def to_environment(self, database_url: str) -> dict[str, str]:
        """Returns the settings as RECPARAMS_* variables, for a child process on a database."""
        variables = {}
        for name, value in self.model_dump(exclude_none=True).items():
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            elif isinstance(value, tuple):
                value = ",".join(value)
            variables[f"RECPARAMS_{name.upper()}"] = str(value)
        return {**variables, "RECPARAMS_DATABASE_URL": database_url}
