"""Prometheus metrics: what is counted where, and that the documents have all of them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.state import TRAITS
from recparams_server.app import App
from recparams_server.background import monitor
from recparams_server.store.migration import migrate
from recparams_simulation.demo_server import free_port
from tests import observed
from tests.faults import SMALL, OwnPostgres, eventually, trigger
from tests.support import (
    connect,
    in_process,
    logged,
    record,
    request,
    train,
    wait_ended,
    wait_serving,
)
from tests.trust import LIKE, decide, live, set_rollout


def samples(text: str) -> dict[str, float]:
    """Every sample of a scrape by its name and labels."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def scrape(port: int) -> dict[str, float]:
    """The samples as they are now."""
    return samples(observed.scrape(port))


def decisions(port: int) -> float:
    """All decisions, whatever the arm, version and source."""
    found = scrape(port)
    return sum(found[name] for name in found if name.startswith("recparams_decisions_total"))


async def test_metrics_follow_gates_and_rollouts(start_server: Any) -> None:
    port = free_port("127.0.0.1", 0)
    settings = {**SMALL, "gates": "enforce", "watch_seconds": 0.2, "experiment_burn_in": 30}
    server = start_server(metrics_port=port, **settings)

    async def shows(name: str, value: float | None) -> bool:
        return (await asyncio.to_thread(scrape, port)).get(name) == value

    async with connect(server.target) as client:
        await wait_serving(client)
        await eventually(lambda: shows("recparams_training_refused_in_a_row", 0))
        await record(client, *(logged(f"i{n}", f"u{n}", LIKE) for n in range(50)))
        run_id = await trigger(client)
        await eventually(lambda: shows('recparams_worker_processes{task="train"}', 1))
        run = await wait_ended(client, run_id)
        await eventually(lambda: shows("recparams_training_refused_in_a_row", 1))
        assert await shows('recparams_training_outcomes_total{outcome="refused"}', 1)
        assert await shows('recparams_training_runs_total{status="completed"}', 1)
        await eventually(lambda: shows('recparams_worker_processes{task="train"}', None))

        await set_rollout(client, version=run.model_version, percent=50)
        await eventually(lambda: shows("recparams_rollout_percent", 50))
        assert await shows("recparams_active_version", run.model_version)
        people = [f"user-{n}" for n in range(400)]

        async def is_ramping() -> bool:
            arms = {answer.policy_arm for answer in await decide(client, people[:50])}
            return arms == {pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED}

        await eventually(is_ramping)
        at_first = await asyncio.to_thread(decisions, port)
        answers = await live(
            client,
            people,
            lambda a: [LIKE if a.policy_arm == pb.POLICY_ARM_RULE_BASED else types.REACTION_SKIP],
        )
        assert await asyncio.to_thread(decisions, port) == at_first + len(answers)
        await eventually(lambda: shows('recparams_rollouts_taken_back{by="watch"}', 1), 180)
        assert {a.policy_arm for a in answers} == {pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED}
        await eventually(lambda: shows("recparams_active_version", 0))
        assert 'recparams_arm_reward{arm="rl"}' not in await asyncio.to_thread(scrape, port)


async def test_reactions_are_counted_by_arm(start_server: Any) -> None:
    port = free_port("127.0.0.1", 0)
    server = start_server(metrics_port=port, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        people = [f"user-{n}" for n in range(10)]
        await live(client, people[:6], lambda _: [LIKE, types.REACTION_COMPLETE])
        await live(client, people[6:], lambda _: [types.REACTION_SKIP])
        old = [logged(f"i{n}", f"u{n}", types.REACTION_DISLIKE) for n in range(3)]
        await record(client, *old)
        # Two are there already.
        await record(client, *old[:2], logged("new", "ada", LIKE, completion_rate=0.5))
    found = await asyncio.to_thread(scrape, port)

    def of(name: str, arm: str) -> float:
        return found[f'recparams_{name}_total{{arm="{arm}"}}']

    assert of("interactions_recorded", "rule_based") == 10
    assert of("reward_gained", "rule_based") == pytest.approx(6 * 1.5)
    assert of("reward_lost", "rule_based") == pytest.approx(4 * 0.3)
    assert of("interactions_recorded", "none") == 4
    assert of("reward_gained", "none") == pytest.approx(1.25)
    assert of("reward_lost", "none") == pytest.approx(3)
    likes = 'recparams_reactions_total{arm="rule_based",reaction="like"}'
    assert found[likes] == 6


async def test_the_documents_have_every_metric(start_server: Any) -> None:
    """And the database's figures are shown by any server, from its start."""
    port = free_port("127.0.0.1", 0)
    first = start_server(**SMALL)
    async with connect(first.target) as client:
        await wait_serving(client)
        await record(client, *(logged(f"i{n}", f"u{n}", LIKE) for n in range(50)))
        run = await train(client)
    server = start_server(metrics_port=port, **SMALL)

    async def shows_runs() -> bool:
        text = await asyncio.to_thread(observed.scrape, port)
        return "recparams_training_runs_total{" in text

    async with connect(server.target) as client:
        await wait_serving(client)
        await eventually(shows_runs)
        personality = types.PersonalityProfile(**dict.fromkeys(TRAITS, 50.0))
        profile = pb.UserPersonalityProfile(user_id="ada", personality=personality)
        await client.recommendation.PutPersonalityProfiles(
            pb.PutPersonalityProfilesRequest(profiles=[profile])
        )
        for _ in range(3):
            question = request("ada")
            question.ClearField("personality")
            await client.recommendation.GetRecommendationParams(question)
        await record(client, logged("waits", "ada", LIKE))
        text = await asyncio.to_thread(observed.scrape, port)
    seen, documented = observed.families(text), observed.documented()
    assert {name: one.type for name, one in seen.items()} == {
        name: one.type for name, one in documented.items()
    }
    for name, one in seen.items():
        # Arms have samples during a comparison alone, and workers while they run.
        if one.labels or not name.startswith(
            ("recparams_arm_", "recparams_rollouts", "recparams_sample", "recparams_w")
        ):
            assert one.labels == documented[name].labels, name

    found = samples(text)
    assert found["recparams_serving"] == found["recparams_database_up"] == 1
    assert found["recparams_serving_version"] == run.model_version
    assert 0 < found["recparams_model_age_seconds"] < 60
    assert 0 < time.time() - found["recparams_training_last_timestamp_seconds"] < 60
    assert found['recparams_training_runs_total{status="completed"}'] == 1
    assert found['recparams_training_runs_total{status="failed"}'] == 0
    assert found['recparams_training_stage_seconds{stage="updating"}'] == pytest.approx(
        run.stage_seconds["updating"]
    )
    assert found["recparams_training_interactions"] == 50
    assert found["recparams_training_interactions_waiting"] == 0
    assert found["recparams_training_reward"] == 1
    assert found["recparams_q_table_states"] == run.statistics.total_states
    assert found['recparams_profile_cache_lookups_total{result="miss"}'] == 1
    assert found['recparams_profile_cache_lookups_total{result="hit"}'] == 2
    assert found['recparams_policy_reloads_total{outcome="served"}'] == 1


async def test_losing_the_database_shows(
    tmp_path: Path, private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = OwnPostgres(private_folder / "postgres")
    url = postgres.uri("postgres")
    await migrate(url)
    port = free_port("127.0.0.1", 0)
    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0.2)
    app = App(in_process(url, tmp_path, metrics_port=port, reload_poll_seconds=0.1))
    await app.start()
    try:

        async def shows(name: str, value: float) -> bool:
            return (await asyncio.to_thread(scrape, port)).get(name) == value

        async with connect(f"127.0.0.1:{app.port}") as client:
            await wait_serving(client)
        await eventually(lambda: shows("recparams_database_up", 1))
        failed = 'recparams_policy_reloads_total{outcome="failed"}'
        before = (await asyncio.to_thread(scrape, port))[failed]

        async def fails_to_reload() -> bool:
            return (await asyncio.to_thread(scrape, port))[failed] > before

        postgres.stop()
        await eventually(lambda: shows("recparams_database_up", 0))
        await eventually(fails_to_reload)
        assert await shows("recparams_serving", 1)
        postgres.start()
        await eventually(lambda: shows("recparams_database_up", 1))
    finally:
        await app.stop()
        postgres.stop()
    assert await shows("recparams_serving", 0)


@pytest.mark.parametrize("days", [90, -1])
async def test_the_end_of_the_certificate_shows(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server-key.pem"
    ca = trustme.CA()

    def issue(end: datetime) -> float:
        issued = ca.issue_cert("127.0.0.1", not_before=end - timedelta(days=100), not_after=end)
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return end.timestamp()

    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0.1)
    port = free_port("127.0.0.1", 0)
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    ends_at = issue(end)
    app = App(
        in_process(
            database_url, tmp_path, metrics_port=port, tls_certificate=certificate, tls_key=key
        )
    )
    await app.start()
    try:

        async def shows(value: float) -> bool:
            found = await asyncio.to_thread(scrape, port)
            return found.get("recparams_tls_certificate_expiry_timestamp_seconds") == value

        await eventually(lambda: shows(ends_at))
        certificate.write_text("no certificate")
        await asyncio.sleep(0.3)
        assert await shows(ends_at)
        renewed = issue(end + timedelta(days=200))
        await eventually(lambda: shows(renewed))
    finally:
        await app.stop()
