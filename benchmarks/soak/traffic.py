"""Callers that go on whatever happens: decisions, reactions, profiles, training, activations."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from benchmarks.soak.ledger import DECIDE, DECIDE_MANY, RECORD, Answer, Ledger
from benchmarks.soak.people import People, user_id
from benchmarks.soak.replicas import ADMIN
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import models_pb2_grpc, system_pb2_grpc, training_pb2_grpc
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_client import AsyncRecParamsClient, DecisionRequest, Interaction, Recommendation
from recparams_client.channel import OPTIONS, target

DECISION_SECONDS = 2.0
"""Until the client library answers instead: far above what is normal, so that only what hangs or
fails is counted, and not how busy the machine is."""
BATCH = 16
MOST_RECORDED = 50
ADMIN_SECONDS = 10.0
REACTIONS = ("like", "dislike", "complete", "skip", "share", "impression")


@dataclass(frozen=True)
class Pace:
    """How much is asked for.

    Attributes:
        unary, batches, recorders: callers of each kind, each with one call at a time.
        pause: mean seconds between two calls of a caller.
        train_seconds, activate_seconds: from one to the next.
    """

    unary: int = 6
    batches: int = 2
    recorders: int = 3
    pause: float = 0.04
    train_seconds: float = 30.0
    activate_seconds: float = 7.0


@dataclass
class Traffic:
    """The callers and what they share.

    Attributes:
        people: who is asked for.
        ledger: where it is all noted.
        addresses: of the servers, as clients reach them.
        outbox: interactions that are not acknowledged yet, with the answers they are about.
    """

    people: People
    ledger: Ledger
    addresses: list[str]
    seed: int
    pace: Pace
    outbox: deque[tuple[Interaction, Answer]] = field(default_factory=deque)

    async def run(self) -> None:
        """Every caller, until cancelled."""
        pace = self.pace
        async with (
            AsyncRecParamsClient(self.addresses, decision_timeout=DECISION_SECONDS) as client,
            grpc.aio.insecure_channel(target(self.addresses), options=OPTIONS) as channel,
            asyncio.TaskGroup() as group,
        ):
            callers: list[tuple[Callable[[random.Random], Awaitable[float]], int]] = [
                (lambda draw: self._decide(client, draw), pace.unary),
                (lambda draw: self._decide_many(client, draw), pace.batches),
                (lambda _: self.record(client), pace.recorders),
                (lambda draw: self._put_profiles(client, draw), 1),
                (lambda _: self._ask_status(channel), 1),
                (lambda _: self._train(channel), 1),
                (lambda draw: self._activate(channel, draw), 1),
            ]
            number = 0
            for work, count in callers:
                for _ in range(count):
                    number += 1
                    group.create_task(_repeat(work, random.Random(f"{self.seed} {number}")))

    async def _decide(self, client: AsyncRecParamsClient, draw: random.Random) -> float:
        _, request = self.people.request(draw)
        with self.ledger.call(DECIDE) as call:
            given = await client.get_recommendation_params(request)
            if call.answered([given]):
                self._note(request, given, draw)
        return self.pace.pause

    async def _decide_many(self, client: AsyncRecParamsClient, draw: random.Random) -> float:
        requests = [self.people.request(draw)[1] for _ in range(BATCH)]
        with self.ledger.call(DECIDE_MANY) as call:
            given = await client.batch_get_recommendation_params(requests)
            if call.answered(given):
                for request, one in zip(requests, given, strict=True):
                    self._note(request, one, draw)
        return BATCH * self.pace.pause

    def _note(self, request: DecisionRequest, given: Recommendation, draw: random.Random) -> None:
        answer = self.people.answer(request, given)
        self.ledger.answers.append(answer)
        if draw.random() < 0.5:
            interaction = Interaction(
                request.user_id,
                given.decision_token,
                reactions=(draw.choice(REACTIONS),),
                completion_rate=round(draw.random(), 2),
                occurred_at=datetime.now(UTC) if draw.random() < 0.5 else None,
            )
            self.outbox.append((interaction, answer))

    async def record(self, client: AsyncRecParamsClient) -> float:
        """Sends what waits; what is not acknowledged goes back and is sent again as it is."""
        batch = [self.outbox.popleft() for _ in range(min(MOST_RECORDED, len(self.outbox)))]
        if not batch:
            return self.pace.pause
        acknowledged = False
        try:
            with self.ledger.call(RECORD) as call:
                await client.record_interactions([one for one, _ in batch])
                acknowledged = True
        finally:
            if acknowledged:
                self.ledger.acknowledged |= {one.interaction_id: given for one, given in batch}
            else:
                self.outbox.extendleft(reversed(batch))
        return 8 * self.pace.pause if acknowledged else call.retry_after

    async def _put_profiles(self, client: AsyncRecParamsClient, draw: random.Random) -> float:
        some = draw.sample(range(len(self.people.scores)), 5)
        with self.ledger.call("put profiles"):
            await client.put_personality_profiles(
                {user_id(person): self.people.profile(person) for person in some}
            )
        return 12 * self.pace.pause

    async def _ask_status(self, channel: grpc.aio.Channel) -> float:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        with self.ledger.call("status"):
            await stub.GetSystemHealth(spb.GetSystemHealthRequest(), timeout=DECISION_SECONDS)
        return 12 * self.pace.pause

    async def _train(self, channel: grpc.aio.Channel) -> float:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        with self.ledger.call("train"):
            await stub.TriggerTraining(
                tpb.TriggerTrainingRequest(), metadata=ADMIN, timeout=ADMIN_SECONDS
            )
        return self.pace.train_seconds

    async def _activate(self, channel: grpc.aio.Channel, draw: random.Random) -> float:
        """Serves another version, or goes back."""
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)
        options = {"metadata": ADMIN, "timeout": ADMIN_SECONDS}
        versions = []
        with self.ledger.call("list models"):
            answer = await stub.ListModels(mpb.ListModelsRequest(page_size=5), **options)
            versions = [model.version for model in answer.models]
        if versions and draw.random() < 0.3:
            with self.ledger.call("roll back"):
                await stub.RollbackModel(mpb.RollbackModelRequest(reason="soak"), **options)
        elif versions:
            version = draw.choice(versions)
            with self.ledger.call("activate"):
                await stub.ActivateModel(
                    mpb.ActivateModelRequest(version=version, reason="soak"), **options
                )
        return self.pace.activate_seconds


async def _repeat(work: Callable[[random.Random], Awaitable[float]], draw: random.Random) -> None:
    while True:
        pause = await work(draw)
        await asyncio.sleep(pause * draw.uniform(0.5, 1.5))


async def measure_lateness(ledger: Ledger, step: float = 0.1) -> None:
    """Notes by how much the clients' own event loop is late, until cancelled."""
    while True:
        due = time.monotonic() + step
        await asyncio.sleep(step)
        ledger.late = max(ledger.late, time.monotonic() - due)
