"""One object for decisions, training and evaluation, by the names of an in-process system."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import grpc

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import training_pb2 as tpb
from recparams_client.admin import AdminClient
from recparams_client.admin_aio import AsyncAdminClient
from recparams_client.admin_requests import run_outcome, run_status
from recparams_client.channel import DECISION_TIMEOUT, from_environment
from recparams_client.closing import Closing
from recparams_client.sync import RecParamsClient
from recparams_client.types import (
    ContentType,
    DecisionRequest,
    Mood,
    PersonalityProfile,
    Recommendation,
    TimeOfDay,
)

STATISTICS_TIMEOUT = 10.0


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

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def get_stats(self) -> dict[str, float]:
        """Returns statistics of the newest version's table, served or not; zeros before any.

        These are model_version, total_states, total_state_actions, avg_q_value and max_q_value (in
        units of reward), coverage, total_updates and exploration_rate.

        Raises:
            RecParamsError: refused, or no answer.
            RuntimeError: the newest version cannot be read.
        """
        newest = next(iter(self._admin.versions(limit=1)), mpb.Model())
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
        self._how: dict[str, Any] = {
            "address": address,
            "credentials": credentials,
            "admin_key": admin_key,
        }
        self._admin = AdminClient(**self._how, timeout=STATISTICS_TIMEOUT)
        self.agent = ServedAgent(self._admin)

    def get_recommendation_params(
        self,
        user_id: str,
        personality_profile: Mapping[str, float] | None,
        content_type: ContentType,
        mood: Mood,
        time_of_day: TimeOfDay,
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
        async with AsyncAdminClient(**self._how) as admin:
            started = await admin.trigger(
                days_back=days_back, min_interactions_per_user=min_interactions_per_user
            )
            run = await admin.wait(started.run_id)
        if run.status != tpb.TRAINING_RUN_STATUS_COMPLETED:
            raise RuntimeError(f"training run {run.run_id} {run_status(run)}: {run.error}")
        return {
            "run_id": run.run_id,
            "status": run_status(run),
            "outcome": run_outcome(run),
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
        async with AsyncAdminClient(**self._how) as admin:
            found = await admin.evaluate(test_days=test_days, overall_only=True)
        return {
            "interactions": found.interactions,
            "users": found.users,
            "average_reward": found.average_reward,
            "like_rate": found.like_rate,
            "reaction_counts": dict(found.reaction_counts),
            "policies": {policy.name: _doubly_robust(policy) for policy in found.policies},
        }

    def close(self) -> None:
        """Closes the connections."""
        self._admin.close()
        self.client.close()


@cache
def get_rl_orchestrator() -> RLTrainingOrchestrator:
    """Returns the orchestrator of this process, by `from_environment` as it is at the first call.

    Raises:
        OSError: a file cannot be read.
    """
    return RLTrainingOrchestrator(**from_environment())


def _statistics(message: tpb.ModelStatistics) -> dict[str, float]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _doubly_robust(policy: Any) -> float | None:
    (estimate,) = (one for one in policy.estimates if one.estimator == "dr")
    return estimate.value if estimate.HasField("value") else None
