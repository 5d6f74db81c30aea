"""The command line of recparams: `recparams --help`."""

from importlib import import_module

import click
from click.exceptions import NoSuchCommand

from recparams_server.imports import uncollected

_COMMANDS = {
    "serve": "Run the server.",
    "health": "Ask a server whether it serves.",
    "migrate": "Bring the schema of a database up to date.",
    "train": "Learn from the recorded interactions that no run has learned yet.",
    "runs": "Look at training runs, follow one, or stop one.",
    "evaluate": "Sum up the reactions of the last days, and estimate the value of other policies "
    "on them.",
    "tune": "Find which learner and which hyperparameters suit your people, by what they did.",
    "models": "Look at model versions, serve another one, compare, move or delete them.",
    "rollout": "Serve a version to a share of the people, and compare it.",
    "shadow": "Score a version on live traffic without serving it.",
    "recommend": "Ask for one person's recommendation parameters.",
    "status": "Show the state of the service: server, database, served version, training.",
    "doctor": "Say what is wrong with the service, and the command that mends it.",
    "interactions": "Write recorded interactions to files.",
    "forget": "Delete one person's interactions, profile and user for good.",
    "simulate": "Let simulated people use a running server.",
    "compare": "Compare every algorithm on the same simulated people.",
    "demo": "Watch the service learn from simulated people.",
    "new-key": "Make a random key and its hash; nothing is stored or sent.",
}
"""What each does, as the first sentence of its own help says it."""


class LazyGroup(click.Group):
    """Group that imports a command when it is asked for, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Returns the names in the order in which people need them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Returns the command of a name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        with uncollected():
            command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Writes what the commands do, and imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

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
