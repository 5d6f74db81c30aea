"""Types of settings that need more than pydantic knows, and settings made of dataclasses."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

Instance = TypeVar("Instance")


class Part(BaseModel):
    """Some of the settings. Validators are built for all of them together, at the first use."""

    model_config = ConfigDict(defer_build=True)


def settings_from(dataclass: Any, prefix: str) -> dict[str, Any]:
    """Returns pydantic fields for those of a dataclass, as `pydantic.create_model` takes them.

    Args:
        dataclass: has defaults and, in the metadata of each field, a ``description``.
        prefix: put before the fields' names.
    """
    return {
        prefix + field.name: (
            field.type,
            Field(field.default, description=field.metadata["description"]),
        )
        for field in fields(dataclass)
    }


def configured(dataclass: type[Instance], settings: BaseModel, prefix: str = "") -> Instance:
    """Returns a dataclass filled from the settings that have its fields' names after a prefix."""
    values = {
        field.name: getattr(settings, prefix + field.name)
        for field in fields(dataclass)  # type: ignore[arg-type]
    }
    return dataclass(**values)


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _empty_is_absent(value: Any) -> Any:
    return None if value == "" else value


def _not_blank(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and not text.strip():
        raise ValueError("must not be blank")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
# The validator named last comes first.
Secret = Annotated[SecretStr | None, BeforeValidator(_not_blank), BeforeValidator(_empty_is_absent)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_absent)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_absent)]
