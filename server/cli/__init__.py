"""The command line of recparams."""

import click


@click.group()
def main() -> None:
    """Serve, train and look after recommendation parameters."""


def _register() -> None:
    from server.cli.serve import serve

    main.add_command(serve)


_register()
