"""`recparams serve`: one option for every setting."""

import difflib
import os
from collections.abc import Callable
from typing import Any

import click
from pydantic import SecretStr

from recparams_server.cli.given_settings import read_settings
from recparams_server.imports import of_a_service
from recparams_server.settings import Settings

_VARIABLES = [f"RECPARAMS_{name.upper()}" for name in Settings.model_fields]


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _unknown_variables() -> list[str]:
    known = {*_VARIABLES, "RECPARAMS_CONFIG", "RECPARAMS_ADDRESS"}
    known |= {"RECPARAMS_CA", "RECPARAMS_CERT", "RECPARAMS_KEY"}
    return sorted(
        name for name in os.environ if name.startswith("RECPARAMS_") and name not in known
    )


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each setting, told apart from "not given" by None."""
    for name, field in reversed(Settings.model_fields.items()):
        secret = SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
        shown = "" if secret else f"; default {_default(field.default)}"
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar="VALUE",
            help=f"{field.description} [RECPARAMS_{name.upper()}{shown}]",
        )(command)
    return command


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="TOML file of settings by the names below, with _ for -. [RECPARAMS_CONFIG]",
)
@setting_options
def serve(config: str | None, **given: Any) -> None:
    """Run the server.

    Settings come from these options, then RECPARAMS_* variables, then the file, then the defaults.
    Without a database URL it runs an embedded Postgres in the data directory.

    \b
    recparams serve
    recparams serve --port 50052 --exploration off
    recparams serve --workers 4
    DATABASE_URL=postgresql://u:p@db/recparams RECPARAMS_ADMIN_KEY=... \\
        recparams serve --environment production --host 0.0.0.0
    """
    if config is not None:
        os.environ["RECPARAMS_CONFIG"] = config
    settings = read_settings(**given)
    with of_a_service():
        import structlog
        import uvloop

        from recparams_server import app
        from recparams_server.observability import logs
    logs.configure(settings.log_level, settings.log_format)
    for name in _unknown_variables():
        like = difflib.get_close_matches(name, _VARIABLES, n=1)
        hint = {"did_you_mean": like[0]} if like else {}
        structlog.get_logger().warning("this variable is not a setting", name=name, **hint)
    try:
        if settings.workers > 1:
            from recparams_server.supervisor import supervise

            supervise(settings)
        else:
            uvloop.run(app.serve(settings))
    except app.StartError as failure:
        click.echo(f"recparams: {failure}", err=True)
        raise SystemExit(1) from None
