"""The blocking client of those who train, evaluate and roll out."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, Unpack

import grpc

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
from recparams_client.closing import Closing
from recparams_client.errors import from_rpc_error
from recparams_client.forks import Connection
from recparams_client.tracing import traced


class AdminClient(Closing):
    """Training, evaluation, versions and rollouts of a running service. Threads may share one.

    Answers are the messages of the contract (`recparams.v1`), whose fields docs/api.md explains.
    Every call raises RecParamsError if it is refused or not answered.

    Args:
        address, credentials, options, interceptors: as for `RecParamsClient`.
        admin_key: the server's, or the key of a caller who may administer; send it over TLS only.
        timeout: seconds for each call but `evaluate`, `follow` and `wait`, which may take long.
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
        self._connection = Connection(
            lambda: connect(grpc, address, credentials, LONG_LIVED, options, interceptors),
            requests.AdminStub,
            is_stream=True,
        )
        self._metadata = requests.admin_metadata(admin_key)
        self._timeout = timeout

    @classmethod
    def from_environment(cls) -> Self:
        """Returns a client by the variables of the command line, as `get_rl_orchestrator` does."""
        return cls(**from_environment())

    def trigger(self, **options: Unpack[TriggerOptions]) -> tpb.TrainingRun:
        """Starts a training run, and returns it. Options are those of `TriggerOptions`.

        Raises:
            ValueError: an unknown name.
            RecParamsError: refused, as with reason TRAINING_ALREADY_RUNNING.
        """
        return self._answer(requests.trigger(options))

    def follow(self, run_id: int) -> Iterator[tpb.TrainingRun]:
        """Yields a run now and at each change, until it has ended, across restarts of the server.

        Raises:
            RecParamsError: there is no such run, or no server has answered for a minute.
        """
        request, lost_at = tpb.WatchTrainingRunRequest(run_id=run_id), None
        while True:
            try:
                with self._connection as stub:
                    for update in stub.training.WatchTrainingRun(
                        request, metadata=traced(self._metadata)
                    ):
                        lost_at = None
                        yield update.run
            except grpc.RpcError as raised:
                lost_at = lost_at or time.monotonic()
                requests.require_passing(raised, lost_at)
                time.sleep(PAUSE)
            else:
                return

    def wait(self, run_id: int) -> tpb.TrainingRun:
        """Returns a run once it has ended, as `run_status` says. Raises as `follow`."""
        run = tpb.TrainingRun(run_id=run_id)
        for update in self.follow(run_id):
            run = update
        return run

    def cancel(self, run_id: int) -> tpb.TrainingRun:
        """Asks a run to stop, and returns it as it is."""
        return self._answer(requests.cancel(run_id))

    def run(self, run_id: int) -> tpb.TrainingRun:
        """Returns one run."""
        return self._answer(requests.run(run_id))

    def runs(self, limit: int = 20) -> list[tpb.TrainingRun]:
        """Returns the newest runs, up to 100, the newest first."""
        return self._answer(requests.runs(limit))

    def evaluate(self, **options: Unpack[EvaluateOptions]) -> tpb.EvaluateResponse:
        """Returns what was logged, and what policies would have been worth on it.

        Options are those of `EvaluateOptions`. Raises ValueError on an unknown name.
        """
        return self._answer(requests.evaluate(options))

    def versions(self, limit: int = 20) -> list[mpb.Model]:
        """Returns the newest model versions, up to 100, the newest first."""
        return self._answer(requests.versions(limit))

    def version(self, number: int = 0) -> mpb.Model:
        """Returns one version; 0 is the active one."""
        return self._answer(requests.version(number))

    def activate(self, number: int, reason: str = "") -> int:
        """Serves a version, or by 0 the rules, to everybody who is not held back.

        Returns the version that was served before.
        """
        return self._answer(requests.activate(number, reason))

    def rollback(self, reason: str = "") -> int:
        """Serves what was served before. Returns the version; 0 is the hand-written rules."""
        return self._answer(requests.rollback(reason))

    def rollout(self) -> rpb.Rollout:
        """Returns who is served what."""
        return self._answer(requests.rollout())

    def set_rollout(self, **options: Unpack[RolloutOptions]) -> rpb.Rollout:
        """Moves a rollout, and returns who is served what.

        Options are those of `RolloutOptions`.
        """
        return self._answer(requests.set_rollout(options))

    def experiment(self, experiment_id: int = 0) -> rpb.GetExperimentResponse:
        """Returns how the arms of a rollout compare; 0 is the newest."""
        return self._answer(requests.experiment(experiment_id))

    def health(self) -> spb.GetSystemHealthResponse:
        """Returns how the service does. It needs no key."""
        return self._answer(requests.health())

    def _answer(self, call: Call[Answer]) -> Answer:
        try:
            with self._connection as stub:
                response = call.method(stub)(
                    call.request,
                    timeout=None if call.is_long else self._timeout,
                    metadata=traced(self._metadata),
                )
        except grpc.RpcError as raised:
            raise from_rpc_error(raised) from None
        return call.read(response)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
