"""The client library against the real server, as its README uses it."""

import asyncio
import re

import asyncpg
import grpc
import pytest

from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    RecParamsError,
)
from recparams_server.app import App
from tests.support import ROOT, Client

ADA = PersonalityProfile(75, 60, 40, 80, 30)


async def test_decide_and_record(app: App, client: Client, db: asyncpg.Connection) -> None:
    async with AsyncRecParamsClient(f"127.0.0.1:{app.port}", decision_timeout=30) as recparams:
        assert await recparams.put_personality_profiles({"ada": ADA}) == 1
        request = DecisionRequest("ada", "music", "calm", "evening")
        decision = await recparams.get_recommendation_params(request)
        assert decision.fallback_reason == "no_model"
        assert (decision.energy, decision.novelty) == ("low", "exploratory")
        interaction = Interaction("ada", decision.decision_token, ("complete", "share"))
        assert (await recparams.record_interactions([interaction])).recorded == 1
        assert (await recparams.record_interactions([interaction])).duplicates == 1
        assert await db.fetchval("SELECT reactions FROM interactions") == 4 + 16

        with pytest.raises(RecParamsError) as raised:
            await recparams.put_personality_profiles({"ada": PersonalityProfile(1, 2, 3, 4, 500)})
        assert raised.value.code == grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = raised.value.violations
        assert violation.field == "profiles[0].personality.neuroticism"


async def test_the_clients_readme(app: App, client: Client, db: asyncpg.Connection) -> None:
    readme = (ROOT / "clients" / "python" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace('"127.0.0.1:50051"', f'"127.0.0.1:{app.port}", decision_timeout=30')
    assert "decision_timeout" in code
    searched: list[dict[str, float]] = []

    def run() -> None:
        exec(code, {"search": lambda **params: searched.append(params)})

    await asyncio.to_thread(run)
    assert searched[0]["genre_count"] == 5
    assert await db.fetchval("SELECT count(*) FROM interactions") == 1
