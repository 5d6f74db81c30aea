"""Processes import no more than they need before they do their work."""

import sys

import click
import pytest

from recparams_server import cli
from tests.processes import run
from tests.support import ROOT

OF_SERVERS = {"asyncpg", "numpy", "prometheus_client", "pydantic", "structlog"}
OF_FEW = {"alembic", "cryptography", "matplotlib", "numba", "scipy", "sqlalchemy"}
OF_CALLS = {"google", "grpc", "recparams_client", "rich"}
CALLING = "forget health models rollout runs shadow status train tune"
"""Commands that ask a server, and do nothing with numbers themselves."""


def imported(program: str) -> set[str]:
    """Returns the packages that a Python program has imported in the end."""
    whole = f"{program}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = run(sys.executable, "-c", whole, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_no_command() -> None:
    found = imported(
        "from recparams_server.cli import main\nmain(['--help'], standalone_mode=False)"
    )
    assert "click" in found
    assert not found & (OF_SERVERS | OF_FEW | OF_CALLS | {"asyncio"})


def test_commands_that_call_import_nothing_of_servers() -> None:
    found = imported(
        "from recparams_server.cli import main\n"
        f"for name in {CALLING.split()}: assert main.get_command(None, name)"
    )
    assert "grpc" in found
    assert not found & (OF_SERVERS | OF_FEW | {"recparams_client"})


def test_servers_import_nothing_of_jobs_and_terminals() -> None:
    found = imported(
        "from recparams_server.imports import of_a_service\n"
        "with of_a_service(): import recparams_server.app\n"
    )
    assert found >= OF_SERVERS
    assert not found & (OF_FEW | {"recparams_client", "rich"})


def test_what_was_hidden_can_be_imported_later() -> None:
    program = (
        "from recparams_server.imports import of_a_service\nwith of_a_service(): import structlog\n"
    )
    assert "rich" in imported(f"{program}import gc, rich\nassert gc.isenabled()")


@pytest.mark.parametrize("name", cli.main.list_commands(click.Context(cli.main)))
def test_the_list_says_what_each_command_says(name: str) -> None:
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert cli._COMMANDS[name] == command.get_short_help_str(limit=1000)
