"""One object for decisions, training and evaluation, by the names of an in-process system."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import models_pb2_grpc, training_pb2_grpc
from recparams.v1 import training_pb2 as tpb
from recparams_client.channel import (
    ADMIN_KEY_HEADER,
    DECISION_TIMEOUT,
    LONG_LIVED,
    connect,
    tls_credentials,
)
from recparams_client.closing import Closing
from recparams_client.conversion import enum_names
from recparams_client.errors import from_rpc_error
from recparams_client.forks import Connection, require_grpc
from recparams_client.sync import RecParamsClient
from recparams_client.types import DecisionRequest, PersonalityProfile, Recommendation

STATISTICS_TIMEOUT = 10.0
PATIENCE = 60.0
"""Seconds for which a run is followed while no server answers."""

_STATUSES = enum_names(tpb.TrainingRunStatus, "TRAINING_RUN_STATUS_")
_OUTCOMES = enum_names(tpb.TrainingOutcome, "TRAINING_OUTCOME_")


class DecidedParams(dict[str, float]):
    """Parameters by name, for ``search(**params)``.

    Attributes:
        decision: the decision they come from, whose token goes back with the reaction.
    """

    def __init__(self, decision: Recommendation) -> None:
        super().__init__(decision.params.as_dict())
        self.decision = decision


class ServedAgent:
    """The learner of a running service, to look at."""

    def __init__(self, connection: Connection, metadata: Any) -> None:
        self._connection = connection
        self._metadata = metadata

    def get_stats(self) -> dict[str, float]:
        """Returns statistics of the newest version's table, served or not; zeros before any.

        These are model_version, total_states, total_state_actions, avg_q_value and max_q_value (in
        units of reward), coverage, total_updates and exploration_rate.

        Raises:
            RecParamsError: refused, or no answer.
            RuntimeError: the newest version cannot be read.
        """
        try:
            with self._connection as stub:
                listed = stub.ListModels(
                    mpb.ListModelsRequest(page_size=1),
                    timeout=STATISTICS_TIMEOUT,
                    metadata=self._metadata,
                )
        except grpc.RpcError as raised:
            raise from_rpc_error(raised) from None
        newest = listed.models[0] if listed.models else mpb.Model()
        if newest.version and not newest.HasField("statistics"):
            raise RuntimeError(f"version {newest.version}: {newest.problem}")
        return {"model_version": newest.version, **_statistics(newest.statistics)}


class RLTrainingOrchestrator(Closing):
    """Decisions, training and evaluation by a running service. Threads may share one.

    Args:
        address, credentials, decision_timeout: as for `RecParamsClient`.
        admin_key: the server's, or the key of a caller who may administer. It goes with every call,
            so send it over TLS only.

    Attributes:
        agent: the service's learner, to look at.
        client: the client behind it, which records reactions too.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        admin_key: str | None = None,
        decision_timeout: float = DECISION_TIMEOUT,
    ) -> None:
        self.client = RecParamsClient(
            address, decision_timeout=decision_timeout, credentials=credentials, api_key=admin_key
        )
        self._address = address
        self._credentials = credentials
        self._metadata = None if admin_key is None else ((ADMIN_KEY_HEADER, admin_key),)
        self._connection = Connection(
            lambda: connect(grpc, address, credentials), models_pb2_grpc.ModelServiceStub
        )
        self.agent = ServedAgent(self._connection, self._metadata)

    def get_recommendation_params(
        self,
        user_id: str,
        personality_profile: Mapping[str, float] | None,
        content_type: str,
        mood: str,
        time_of_day: str,
    ) -> DecidedParams:
        """Returns parameters for one person, as `RecParamsClient.get_recommendation_params`.

        Args:
            user_id: 1 to 128 characters.
            personality_profile: the five scores by name, 0 to 100; None takes those stored.
            content_type, mood, time_of_day: names as in `DecisionRequest`.

        Raises:
            TypeError: a score is missing, or has another name.
            ValueError: an unknown name.
            RecParamsError: the server refused the request.
        """
        personality = None
        if personality_profile is not None:
            personality = PersonalityProfile(**personality_profile)
        request = DecisionRequest(user_id, content_type, mood, time_of_day, personality=personality)
        return DecidedParams(self.client.get_recommendation_params(request))

    async def train(
        self, days_back: int | None = None, min_interactions_per_user: int | None = None
    ) -> dict[str, Any]:
        """Has the service learn what no run has learned yet, and returns when that has ended.

        Cancelling it leaves the run to go on.

        Args:
            days_back: leaves out what happened longer ago; None trains all that is due.
            min_interactions_per_user: people with fewer wait; None is the service's default, 5.

        Returns:
            run_id, status ("completed"), outcome (as in "activated", "started", "refused" or
            "no_change"), outcome_reason, model_version (0 if none), users_trained,
            interactions_trained, average_reward, and agent_stats, the table's statistics as of
            `ServedAgent.get_stats`, which are zeros if there is no version.

        Raises:
            RecParamsError: refused, as with reason TRAINING_ALREADY_RUNNING, or no answer.
            RuntimeError: the run failed or was cancelled.
        """
        request = tpb.TriggerTrainingRequest(
            request_id=uuid4().hex,
            days_back=days_back,
            min_interactions_per_user=min_interactions_per_user,
        )
        async with self._training() as stub:
            started = await stub.TriggerTraining(request, metadata=self._metadata)
            run = await self._ended(stub, started.run.run_id)
        if run.status != tpb.TRAINING_RUN_STATUS_COMPLETED:
            raise RuntimeError(f"training run {run.run_id} {_STATUSES[run.status]}: {run.error}")
        return {
            "run_id": run.run_id,
            "status": _STATUSES[run.status],
            "outcome": _OUTCOMES[run.outcome],
            "outcome_reason": run.outcome_reason,
            "model_version": run.model_version,
            "users_trained": run.users_trained,
            "interactions_trained": run.interactions_trained,
            "average_reward": run.average_reward,
            "agent_stats": _statistics(run.statistics),
        }

    async def evaluate_model(self, test_days: int = 3) -> dict[str, Any]:
        """Returns how people reacted in the last days, and what the policies are worth on that.

        Args:
            test_days: 1 to 3650.

        Returns:
            interactions, users, average_reward and like_rate of what was logged (0 if there is
            nothing), reaction_counts by name, and policies: the doubly robust estimate of each
            one's mean reward by name, None where the log cannot say.

        Raises:
            RecParamsError: refused, or no answer.
        """
        request = tpb.EvaluateRequest(test_days=test_days, overall_only=True)
        async with self._training() as stub:
            found = await stub.Evaluate(request, metadata=self._metadata)
        return {
            "interactions": found.interactions,
            "users": found.users,
            "average_reward": found.average_reward,
            "like_rate": found.like_rate,
            "reaction_counts": dict(found.reaction_counts),
            "policies": {policy.name: _doubly_robust(policy) for policy in found.policies},
        }

    @asynccontextmanager
    async def _training(self) -> AsyncIterator[Any]:
        """Opens a stub within the caller's event loop; failed calls raise RecParamsError."""
        require_grpc()
        async with connect(grpc.aio, self._address, self._credentials, LONG_LIVED) as channel:
            try:
                yield training_pb2_grpc.TrainingServiceStub(channel)
            except grpc.RpcError as raised:
                raise from_rpc_error(raised) from None

    async def _ended(self, stub: Any, run_id: int) -> tpb.TrainingRun:
        """Follows a run to its end, across restarts of the server."""
        request = tpb.WatchTrainingRunRequest(run_id=run_id)
        run, lost_at = tpb.TrainingRun(run_id=run_id), None
        while True:
            try:
                async for update in stub.WatchTrainingRun(request, metadata=self._metadata):
                    run, lost_at = update.run, None
            except grpc.RpcError as raised:
                lost_at = lost_at or time.monotonic()
                passing = raised.code() is grpc.StatusCode.UNAVAILABLE
                if not passing or time.monotonic() - lost_at > PATIENCE:
                    raise
                await asyncio.sleep(0.5)
            else:
                return run

    def close(self) -> None:
        """Closes the connections."""
        self._connection.close()
        self.client.close()


@cache
def get_rl_orchestrator() -> RLTrainingOrchestrator:
    """Returns the orchestrator of this process, by the variables of the command line.

    RECPARAMS_ADDRESS (127.0.0.1:50051 by default), RECPARAMS_ADMIN_KEY, and for TLS RECPARAMS_CA,
    RECPARAMS_CERT and RECPARAMS_KEY, as they are at the first call.

    Raises:
        OSError: a file cannot be read.
    """
    files = [os.environ.get(f"RECPARAMS_{name}") for name in ("CA", "CERT", "KEY")]
    return RLTrainingOrchestrator(
        os.environ.get("RECPARAMS_ADDRESS", "127.0.0.1:50051"),
        credentials=tls_credentials(files[0], *files[1:]) if files[0] else None,
        admin_key=os.environ.get("RECPARAMS_ADMIN_KEY"),
    )


def _statistics(message: tpb.ModelStatistics) -> dict[str, float]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _doubly_robust(policy: Any) -> float | None:
    (estimate,) = (one for one in policy.estimates if one.estimator == "dr")
    return estimate.value if estimate.HasField("value") else None
