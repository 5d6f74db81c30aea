"""The real server of the fixtures that backends test with."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from recparams_client import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    RLTrainingOrchestrator,
)
from recparams_client.testing import RunningServer
from tests.processes import run

PROFILE = PersonalityProfile(75, 60, 40, 80, 30)


@pytest.fixture(scope="session")
def recparams_settings() -> dict[str, Any]:
    return {"bins": 2, "exploration_rate": 0.3, "min_exploration_rate": 0.3}


async def test_a_backend_uses_a_real_server(
    recparams_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    request = DecisionRequest("ada", "music", "calm", "evening", personality=PROFILE)
    async with recparams_server.async_client() as client:
        for _ in range(5):
            decision = await client.get_recommendation_params(request)
            reaction = Interaction("ada", decision.decision_token, ("like",))
            assert (await client.record_interactions([reaction])).recorded == 1
    with RLTrainingOrchestrator(
        recparams_server.address, admin_key=recparams_server.admin_key
    ) as orchestrator:
        stats = await asyncio.to_thread(orchestrator.agent.get_stats)
        assert stats["model_version"] == 0
    with await asyncio.to_thread(recparams_server.local_policy) as policy:
        assert policy.get_recommendation_params(request).decision_token
    assert "BlockingIOError" not in caplog.text


def test_without_the_server_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "recparams_server.py").write_text("")
    (tmp_path / "test_one.py").write_text("def test_one(recparams_server): pass")
    done = run(
        *(sys.executable, "-m", "pytest", "-p", "recparams_client.testing.fixtures", "-rs"),
        *("-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}", "test_one.py"),
        cwd=tmp_path,
    )
    assert "1 skipped" in done.stdout, done.stdout + done.stderr
    assert "recparams_server needs the server: pip install recparams" in done.stdout
