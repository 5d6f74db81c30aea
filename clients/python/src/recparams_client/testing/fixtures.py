"""Fixtures of pytest: `recparams`, a fake server, and `recparams_server`, a real one.

A conftest.py has them by ``pytest_plugins = ["recparams_client.testing.fixtures"]``, or a command
line by ``-p recparams_client.testing.fixtures``.
"""

import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from recparams_client.testing.fake import FakeServer
from recparams_client.testing.reach import RunningServer

_SERVER = "recparams_server.in_process"


@pytest.fixture
def recparams() -> Iterator[FakeServer]:
    """A fake server, for one test."""
    with FakeServer() as server:
        yield server


@pytest.fixture(scope="session")
def recparams_settings() -> dict[str, Any]:
    """Settings of `recparams_server`, by name, for a conftest.py to override."""
    return {}


@pytest.fixture(scope="session")
def recparams_server(recparams_settings: dict[str, Any]) -> Iterator[RunningServer]:
    """A real server within this process, on an embedded Postgres, for the whole session.

    Tests share its database, so each has people of its own. Skips where the package recparams,
    which is the server, is not installed.
    """
    try:
        module = import_module(_SERVER)
    except ImportError as failure:
        pytest.skip(f"recparams_server needs the server: pip install recparams ({failure})")
    # Not in pytest's folder, which other sessions of pytest clear away.
    with (
        tempfile.TemporaryDirectory(prefix="recparams-", ignore_cleanup_errors=True) as folder,
        module.running(Path(folder), **recparams_settings) as (address, admin_key),
    ):
        yield RunningServer(address, admin_key)
