"""The settings of commands that work without a server, or the end of the program."""

import os
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import click
from pydantic import ValidationError

from recparams_server.cli.connection import Exit
from recparams_server.settings import Settings
from recparams_server.settings.errors import settings_problems


def read_settings(**given: Any) -> Settings:
    """Returns the settings by these values, variables, file and defaults.

    Values that are None are not given. What is wrong is printed and ends the program with 2.
    """
    file = os.environ.get("RECPARAMS_CONFIG")
    if file and not Path(file).is_file():
        _refuse(f"RECPARAMS_CONFIG: there is no file {file}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as failure:
        _refuse(*settings_problems(failure, Settings.model_fields))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        _refuse(f"{file} is no TOML file: {failure}")


def _refuse(*lines: str) -> NoReturn:
    for line in lines:
        click.echo(f"recparams: {line}", err=True)
    raise SystemExit(Exit.BAD_INPUT) from None
