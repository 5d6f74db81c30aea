"""What the tests of the server share: a backend's and an operator's view of a running one."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recparams.v1 import (
    models_pb2_grpc,
    recommendation_pb2_grpc,
    rollout_pb2_grpc,
    system_pb2_grpc,
    training_pb2_grpc,
)
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_server.contract.interaction import NewInteractions, no_fields
from recparams_server.settings import Settings
from tests.forks import ForkedServer
from tests.processes import GRACE_SECONDS, KILL_SECONDS, run

ROOT = Path(__file__).resolve().parent.parent
ADMIN_KEY = "an-admin-key-for-tests"
ADMIN = (("x-admin-key", ADMIN_KEY),)
SEED_PERSONALITY = types.PersonalityProfile(
    openness=75, conscientiousness=60, extraversion=40, agreeableness=80, neuroticism=30
)
ENDED = (
    tpb.TRAINING_RUN_STATUS_COMPLETED,
    tpb.TRAINING_RUN_STATUS_FAILED,
    tpb.TRAINING_RUN_STATUS_CANCELLED,
)


MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30
"""Bytes free in memory where databases are kept there: several times what all workers need."""


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder outside of pytest's, which other sessions of pytest clear away.

    It is in memory where there is room: there a database takes a tenth of the time to create.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM
    with tempfile.TemporaryDirectory(prefix="recparams-", dir=MEMORY if roomy else None) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Client:
    """Stubs of all services on one channel."""

    channel: grpc.aio.Channel
    recommendation: Any
    training: Any
    models: Any
    rollout: Any
    system: Any
    health: Any


@contextlib.asynccontextmanager
async def connect(target: str, options: Any = None) -> AsyncIterator[Client]:
    """A client of host:port, or of any gRPC target."""
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Client(
            channel,
            recommendation_pb2_grpc.RecommendationServiceStub(channel),
            training_pb2_grpc.TrainingServiceStub(channel),
            models_pb2_grpc.ModelServiceStub(channel),
            rollout_pb2_grpc.RolloutServiceStub(channel),
            system_pb2_grpc.SystemServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )


async def wait_serving(client: Client, seconds: float = 120.0) -> None:
    """Returns when the server's health is SERVING."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            answer = await client.health.Check(health_pb2.HealthCheckRequest())
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
        assert time.monotonic() < deadline, "the server is not SERVING"
        await asyncio.sleep(0.05)


START_SECONDS = 120.0
"""Time for a server to start, on a machine many times slower than ours."""
FEW_OVERRULE = {"caution": 0, "shrinkage": 0.5, "serving_bins": 0}
"""Settings with which a few interactions of a state overcome the rules, served on its own bins."""


def environment(database_url: str, **settings: object) -> dict[str, str]:
    """Environment of a server process with these settings and no others."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RECPARAMS_", "DATABASE_"))}
    given = {
        "admin_key": ADMIN_KEY,
        "database_url": database_url,
        "lame_duck_seconds": 0.2,
        "gates": "report",
        **FEW_OVERRULE,
        "exploration": "off",
        "rollout": "off",
        "holdback_percent": 0,
        **settings,
    }
    texts = {k: ",".join(v) if isinstance(v, tuple) else str(v) for k, v in given.items()}
    return {**clean, **{f"RECPARAMS_{k.upper()}": v for k, v in texts.items()}}


def in_process(database_url: str, data_dir: Path, **changes: Any) -> Settings:
    """Settings of a server within the test's own event loop, with these changes."""
    given = {
        "port": 0,
        "admin_key": ADMIN_KEY,
        "lame_duck_seconds": 0,
        **FEW_OVERRULE,
        "exploration": "off",
        "rollout": "off",
        "holdback_percent": 0,
        # As long as a busy machine takes.
        "profile_wait_seconds": 60.0,
        **changes,
    }
    return Settings(database_url=database_url, data_dir=data_dir, **given)


class ServerProcess:
    """A real server process and the port it chose."""

    def __init__(self, database_url: str, log: Path, **settings: object) -> None:
        self.log = log
        self.process = ForkedServer(environment(database_url, **{"port": 0, **settings}), log)
        try:
            self.port = self._wait_for("listening")["port"]
        except BaseException:
            self.kill()
            raise

    def _wait_for(self, event: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            for line in self.events():
                if line.get("event") == event:
                    return line
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def events(self) -> Iterator[dict[str, Any]]:
        """The log so far."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    @property
    def target(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(GRACE_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(KILL_SECONDS)


def start_in_vain(**settings: object) -> subprocess.CompletedProcess[str]:
    """Runs a server that should not come up."""
    return run(
        *(sys.executable, "-m", "recparams_server.cli", "serve"),
        env=environment("postgresql:///nowhere", **settings),
        cwd=ROOT,
    )


def request(user_id: str = "ada", **fields: Any) -> pb.GetRecommendationParamsRequest:
    """The seed's worked example, for a user, with changes."""
    return pb.GetRecommendationParamsRequest(
        **{
            "user_id": user_id,
            "personality": SEED_PERSONALITY,
            "content_type": types.CONTENT_TYPE_MUSIC,
            "mood": types.MOOD_CALM,
            "time_of_day": types.TIME_OF_DAY_EVENING,
            **fields,
        }
    )


def logged(
    interaction_id: str,
    user_id: str,
    *reactions: Any,
    action: tuple[int, int, int] = (1, 1, 1),
    occurred_at: datetime | None = None,
    **fields: Any,
) -> pb.Interaction:
    """An interaction without a token, by default an hour ago."""
    energy, diversity, novelty = action
    message = pb.Interaction(
        interaction_id=interaction_id,
        user_id=user_id,
        reactions=reactions or [types.REACTION_LIKE],
        logged_decision=pb.LoggedDecision(
            personality=SEED_PERSONALITY,
            content_type=types.CONTENT_TYPE_MUSIC,
            mood=types.MOOD_CALM,
            time_of_day=types.TIME_OF_DAY_EVENING,
            action=types.Action(energy=energy, diversity=diversity, novelty=novelty),
        ),
        **fields,
    )
    message.occurred_at.FromDatetime(occurred_at or datetime.now(UTC) - timedelta(hours=1))
    return message


def new_interactions(ids: list[str], user_ids: list[str], **columns: Any) -> NewInteractions:
    """Interactions as the store takes them, with these columns of their fields."""
    fields = no_fields(len(ids))
    for name, values in columns.items():
        fields[name] = values
    return NewInteractions(ids, user_ids, fields)


async def record(client: Client, *interactions: pb.Interaction) -> pb.RecordInteractionsResponse:
    """Records interactions in as many calls as it takes."""
    answers = [
        await client.recommendation.RecordInteractions(
            pb.RecordInteractionsRequest(interactions=interactions[i : i + 1000])
        )
        for i in range(0, len(interactions), 1000)
    ]
    return pb.RecordInteractionsResponse(
        recorded=sum(a.recorded for a in answers), duplicates=sum(a.duplicates for a in answers)
    )


async def train(client: Client, **fields: Any) -> tpb.TrainingRun:
    """Triggers a run and waits for its end."""
    started = await client.training.TriggerTraining(
        tpb.TriggerTrainingRequest(**fields), metadata=ADMIN
    )
    return await wait_ended(client, started.run.run_id)


async def wait_ended(client: Client, run_id: int) -> tpb.TrainingRun:
    """Watches a run to its end."""
    run = None
    watching = tpb.WatchTrainingRunRequest(run_id=run_id)
    async for update in client.training.WatchTrainingRun(watching, metadata=ADMIN):
        run = update.run
    assert run is not None and run.status in ENDED
    return run


@dataclass(frozen=True)
class Failure:
    """What a failed call told its caller."""

    code: grpc.StatusCode
    message: str
    violations: dict[str, str]
    reason: str
    metadata: dict[str, str]
    retry_seconds: float | None
    request_id: str


async def failure_of(call: Any) -> Failure:
    """Awaits a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as raised:
        return decode(raised)
    raise AssertionError("the call succeeded")


def decode(raised: grpc.aio.AioRpcError) -> Failure:
    """The google.rpc details of an error."""
    status = status_pb2.Status()
    for key, value in raised.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    retry, retry_seconds = error_details_pb2.RetryInfo(), None
    asked = error_details_pb2.RequestInfo()
    for detail in status.details:
        detail.Unpack(bad)
        detail.Unpack(info)
        detail.Unpack(asked)
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(
        raised.code(),
        raised.details() or "",
        {violation.field: violation.description for violation in bad.field_violations},
        info.reason,
        dict(info.metadata),
        retry_seconds,
        asked.request_id,
    )
