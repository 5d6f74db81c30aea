"""The asyncio client of those who train and roll out, with the methods of the blocking one."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_client import admin_requests as requests
from recparams_client.admin_requests import (
    ADMIN_TIMEOUT,
    PAUSE,
    Answer,
    Call,
    EvaluateOptions,
    RolloutOptions,
    TriggerOptions,
)
from recparams_client.channel import LONG_LIVED, Options, connect, from_environment, target
from recparams_client.closing import AsyncClosing
from recparams_client.errors import from_rpc_error
from recparams_client.loops import LoopConnection
from recparams_client.tracing import traced


class AsyncAdminClient(AsyncClosing):
    """Training, evaluation, versions and rollouts of a running service, within one event loop.

    Args:
        address, admin_key, credentials, timeout, options, interceptors: as for `AdminClient`.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        admin_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = ADMIN_TIMEOUT,
        options: Options = (),
        interceptors: Sequence[Any] = (),
    ) -> None:
        target(address)
        self._connection = LoopConnection(
            lambda: connect(grpc.aio, address, credentials, LONG_LIVED, options, interceptors),
            requests.AdminStub,
        )
        self._metadata = requests.admin_metadata(admin_key)
        self._timeout = timeout

    @classmethod
    def from_environment(cls) -> Self:
        """As `AdminClient.from_environment`."""
        return cls(**from_environment())

    async def trigger(self, **options: Unpack[TriggerOptions]) -> tpb.TrainingRun:
        """As `AdminClient.trigger`."""
        return await self._answer(requests.trigger(options))

    async def follow(self, run_id: int) -> AsyncIterator[tpb.TrainingRun]:
        """As `AdminClient.follow`."""
        request, lost_at = tpb.WatchTrainingRunRequest(run_id=run_id), None
        while True:
            try:
                async for update in self._connection.stub.training.WatchTrainingRun(
                    request, metadata=traced(self._metadata)
                ):
                    lost_at = None
                    yield update.run
            except grpc.RpcError as raised:
                lost_at = lost_at or time.monotonic()
                requests.require_passing(raised, lost_at)
                await asyncio.sleep(PAUSE)
            else:
                return

    async def wait(self, run_id: int) -> tpb.TrainingRun:
        """As `AdminClient.wait`."""
        run = tpb.TrainingRun(run_id=run_id)
        async for update in self.follow(run_id):
            run = update
        return run

    async def cancel(self, run_id: int) -> tpb.TrainingRun:
        """As `AdminClient.cancel`."""
        return await self._answer(requests.cancel(run_id))

    async def run(self, run_id: int) -> tpb.TrainingRun:
        """As `AdminClient.run`."""
        return await self._answer(requests.run(run_id))

    async def runs(self, limit: int = 20) -> list[tpb.TrainingRun]:
        """As `AdminClient.runs`."""
        return await self._answer(requests.runs(limit))

    async def evaluate(self, **options: Unpack[EvaluateOptions]) -> tpb.EvaluateResponse:
        """As `AdminClient.evaluate`."""
        return await self._answer(requests.evaluate(options))

    async def versions(self, limit: int = 20) -> list[mpb.Model]:
        """As `AdminClient.versions`."""
        return await self._answer(requests.versions(limit))

    async def version(self, number: int = 0) -> mpb.Model:
        """As `AdminClient.version`."""
        return await self._answer(requests.version(number))

    async def activate(self, number: int, reason: str = "") -> int:
        """As `AdminClient.activate`."""
        return await self._answer(requests.activate(number, reason))

    async def rollback(self, reason: str = "") -> int:
        """As `AdminClient.rollback`."""
        return await self._answer(requests.rollback(reason))

    async def rollout(self) -> rpb.Rollout:
        """As `AdminClient.rollout`."""
        return await self._answer(requests.rollout())

    async def set_rollout(self, **options: Unpack[RolloutOptions]) -> rpb.Rollout:
        """As `AdminClient.set_rollout`."""
        return await self._answer(requests.set_rollout(options))

    async def experiment(self, experiment_id: int = 0) -> rpb.GetExperimentResponse:
        """As `AdminClient.experiment`."""
        return await self._answer(requests.experiment(experiment_id))

    async def health(self) -> spb.GetSystemHealthResponse:
        """As `AdminClient.health`."""
        return await self._answer(requests.health())

    async def _answer(self, call: Call[Answer]) -> Answer:
        try:
            response = await call.method(self._connection.stub)(
                call.request,
                timeout=None if call.is_long else self._timeout,
                metadata=traced(self._metadata),
            )
        except grpc.RpcError as raised:
            raise from_rpc_error(raised) from None
        return call.read(response)

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.close()
