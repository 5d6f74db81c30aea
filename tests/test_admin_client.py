"""The client library's admin clients against the real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams_client import AdminClient, AsyncAdminClient, RecParamsError, run_outcome, run_status
from recparams_server.app import App
from recparams_server.settings import Settings
from tests.faults import SMALL
from tests.support import ADMIN_KEY, Client, in_process
from tests.trust import likes_high_energy, live


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
async def admin(app: App) -> AsyncIterator[AsyncAdminClient]:
    async with AsyncAdminClient(f"127.0.0.1:{app.port}", admin_key=ADMIN_KEY) as connected:
        yield connected


async def test_a_version_from_its_training_to_its_end(
    app: App, client: Client, admin: AsyncAdminClient
) -> None:
    assert (await admin.health()).served.active_version == 0
    assert await admin.versions() == []
    await live(client, [f"person-{n}" for n in range(40)], likes_high_energy)

    started = await admin.trigger(request_id="monday", min_interactions_per_user=1, activate=False)
    assert run_status(started) in ("pending", "running")
    looks = [run_status(run) async for run in admin.follow(started.run_id)]
    assert looks[-1] == "completed"
    run = await admin.wait(started.run_id)
    assert (run_outcome(run), run.interactions_trained) == ("stored", 40)
    assert (await admin.trigger(request_id="monday")).run_id == run.run_id
    assert [one.run_id for one in await admin.runs()] == [run.run_id]
    assert (await admin.run(run.run_id)).model_version == 1

    found = await admin.evaluate(
        policies=[1, "rule_based"],
        include_trained=True,
        overall_only=True,
        as_of=datetime.now(UTC),
        test_days=2,
    )
    assert [policy.version for policy in found.policies] == [1, 0]
    assert found.interactions == 40

    def by_hand() -> None:
        with AdminClient(f"127.0.0.1:{app.port}", admin_key=ADMIN_KEY) as blocking:
            assert [run_status(one) for one in blocking.follow(run.run_id)] == ["completed"]
            assert blocking.wait(run.run_id).run_id == run.run_id
            assert [one.version for one in blocking.versions()] == [1]
            rollout = blocking.set_rollout(version=1, percent=50.0, reason="by hand")
            assert (rollout.version, rollout.percent, rollout.reason) == (1, 50.0, "by hand")
            arms = blocking.experiment().arms
            assert {arm.arm for arm in arms} == {pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED}
            assert blocking.activate(0, "by hand") == 1
            assert blocking.activate(1) == 0
            assert blocking.version().version == 1
            assert blocking.rollout().percent == 100.0
            assert blocking.rollback() == 0
            assert blocking.health().database.answers

    await asyncio.to_thread(by_hand)


async def test_a_run_is_cancelled_and_refusals_are_told(
    app: App, client: Client, admin: AsyncAdminClient
) -> None:
    await live(client, [f"person-{n}" for n in range(10)], likes_high_energy)
    started = await admin.trigger(
        mode="rebuild", days_back=7, hyperparameters={"learning_rate": 0.2}
    )
    with pytest.raises(RecParamsError) as raised:
        await admin.trigger()
    assert raised.value.reason == "TRAINING_ALREADY_RUNNING"
    await admin.cancel(started.run_id)
    ended = await admin.wait(started.run_id)
    assert run_status(ended) == "cancelled"
    assert ended.hyperparameters.learning_rate == 0.2

    with pytest.raises(RecParamsError, match="NOT_FOUND"):
        await admin.wait(4711)
    with pytest.raises(ValueError, match="mode must be one of incremental, rebuild"):
        await admin.trigger(mode="anew")  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match="a policy must be one of active, rule_based"):
        await admin.evaluate(policies=["rules"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="as_of must be an aware datetime"):
        await admin.evaluate(as_of=datetime(2026, 1, 1))
    with pytest.raises(RecParamsError, match="INVALID_ARGUMENT"):
        await admin.evaluate(as_of=datetime.now(UTC) + timedelta(days=1))
    async with AsyncAdminClient(f"127.0.0.1:{app.port}") as nobody:
        assert (await nobody.health()).database.answers
        with pytest.raises(RecParamsError) as raised:
            await nobody.versions()
    assert raised.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_it_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPARAMS_ADDRESS", "127.0.0.1:1")
    with (
        AdminClient.from_environment() as admin,
        pytest.raises(RecParamsError, match=r"UNAVAILABLE: .*refused"),
    ):
        admin.health()
    monkeypatch.setenv("RECPARAMS_CA", "/nowhere/ca.pem")
    with pytest.raises(FileNotFoundError):
        AsyncAdminClient.from_environment()
