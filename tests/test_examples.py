"""The examples, run as their readers run them."""

import asyncio
import os
import sys
from dataclasses import asdict

import asyncpg
import pytest

from examples.backend import CATALOGUE, search
from recparams_client import RecommendationParams
from rl.action import ACTIONS, Action
from server.app import App
from tests.support import ROOT


async def backend(address: str) -> str:
    """What examples/backend.py prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "examples/backend.py", address),
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    return output.decode()


@pytest.mark.usefixtures("client")
async def test_the_backend_asks_searches_and_reports(app: App, db: asyncpg.Connection) -> None:
    printed = await backend(f"127.0.0.1:{app.port}")
    assert "ada: low, diverse, exploratory (rule_based): Harbour at Six, " in printed
    rows = await db.fetch(
        """
        SELECT user_id, liked, skipped, propensity, openness
        FROM interactions_named ORDER BY id
        """
    )
    assert len(rows) == sum(
        int(line.split()[0]) for line in printed.splitlines() if "recorded" in line
    )
    assert {row["user_id"] for row in rows} >= {"ada", "ben"}
    assert all(row["propensity"] == 1.0 and row["openness"] for row in rows)
    assert all(row["liked"] != row["skipped"] for row in rows)


async def test_without_a_server_the_backend_goes_on() -> None:
    printed = await backend("127.0.0.1:1")
    assert "ada: low, diverse, exploratory (rule_based): Harbour at Six, " in printed
    assert "recorded" not in printed


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_the_catalogue_is_searched_within_the_parameters(action: Action) -> None:
    params = RecommendationParams(**asdict(action.to_params()))
    known = frozenset(track.title for track in CATALOGUE[::2])
    found = search(params, known)
    assert all(params.min_energy <= track.energy <= params.max_energy for track in found)
    assert len({track.genre for track in found}) <= params.genre_count
