"""The command line of recparams: `recparams --help`."""

from importlib import import_module

import click
from click.exceptions import NoSuchCommand

_COMMANDS = {
    "serve": "recparams_server.cli.serve:serve",
    "health": "recparams_server.cli.health:health",
    "migrate": "recparams_server.cli.migrate:migrate",
    "train": "recparams_server.cli.train:train",
    "runs": "recparams_server.cli.runs:runs",
    "evaluate": "recparams_server.cli.evaluate:evaluate",
    "tune": "recparams_server.cli.tune:tune",
    "models": "recparams_server.cli.models:models",
    "rollout": "recparams_server.cli.rollout:rollout",
    "shadow": "recparams_server.cli.shadow:shadow",
    "recommend": "recparams_server.cli.recommend:recommend",
    "status": "recparams_server.cli.status:status",
    "doctor": "recparams_server.cli.doctor:doctor",
    "interactions": "recparams_server.cli.interactions:interactions",
    "forget": "recparams_server.cli.forget:forget",
    "simulate": "recparams_server.cli.simulate:simulate",
    "compare": "recparams_server.cli.compare:compare",
    "demo": "recparams_server.cli.demo:demo",
    "new-key": "recparams_server.cli.new_key:new_key",
}


class LazyGroup(click.Group):
    """Group that imports a command when it is asked for, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Returns the names in the order in which people need them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Returns the command of a name, or None."""
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns a command by the first argument; an unknown one ends with what it is like."""
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise NoSuchCommand(args[0], possibilities=_COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Learn, serve and look after recommendation parameters.

    \b
    recparams demo                 see the whole service learn, in three minutes
    recparams serve                run a server on 127.0.0.1:50051
    recparams train --wait         learn from what was recorded (what the CronJob runs)
    recparams status               how the service does, and when it trains next
    recparams doctor               what is wrong with it, and what mends that
    recparams evaluate             what other policies would have been worth
    recparams tune                 which learner and settings suit your people
    recparams rollout next         serve a version to more people
    recparams models rollback      serve what was served before
    recparams compare --quick      every algorithm on the same simulated people

    Every command but serve, migrate, demo, compare, interactions and new-key talks to a running
    server: --address or RECPARAMS_ADDRESS says where, --admin-key or RECPARAMS_ADMIN_KEY lets it
    in, and with --ca or RECPARAMS_CA it uses TLS. Next to a development server in the same folder
    none of them is needed.
    """
