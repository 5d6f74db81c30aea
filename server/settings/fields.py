"""Types of settings that need more than pydantic knows."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import NoDecode


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _empty_is_absent(value: Any) -> Any:
    return None if value == "" else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secret = Annotated[SecretStr | None, BeforeValidator(_empty_is_absent)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_absent)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_absent)]
