"""A caller that decides by itself, and says of its decisions what it likes."""

import time
from typing import Any

import asyncpg
import numpy as np

from recparams.v1 import policy_pb2, policy_pb2_grpc, types_pb2
from recparams.v1 import recommendation_pb2 as pb
from recparams_client.deciding import Decider
from recparams_client.sealing import SealingKey, pack, seal
from recparams_client.snapshot import decode
from recparams_client.types import PersonalityProfile
from recparams_rl.action import N_ACTIONS
from recparams_rl.policy import Policy
from recparams_server.store import models
from tests.support import Client

ADA = PersonalityProfile(75, 60, 40, 80, 30)


class Caller:
    """A caller that follows WatchPolicy once, and says of its decisions what it likes."""

    def __init__(self, response: policy_pb2.WatchPolicyResponse) -> None:
        self.snapshot = decode(response.snapshot, response.checksum)
        key = response.token_key
        self.key = SealingKey(key.id, key.key, key.expires_at.seconds)
        self.decider = Decider(self.snapshot, lambda: self.key)

    @classmethod
    async def following(cls, client: Client) -> "Caller":
        stub = policy_pb2_grpc.PolicyServiceStub(client.channel)  # type: ignore[no-untyped-call]
        call = stub.WatchPolicy(policy_pb2.WatchPolicyRequest())
        response = await call.read()
        call.cancel()
        return cls(response)

    def interaction(
        self, user: str = "ada", profile: PersonalityProfile = ADA, **changes: Any
    ) -> pb.Interaction:
        """A like of an honest decision, or of one with changes; times in milliseconds."""
        one = self.decider.decide(user, profile, "music", "calm", "evening")
        _, _, scores, context, action, arm, source, _, at = one._made
        occurred_at = changes.pop("occurred_at", None)
        fields = {
            "decided_at": at // 1_000_000,
            "model_version": one.recommendation.model_version,
            "propensity": one.recommendation.propensity,
            "context": context.numbers,
            "action": action,
            "arm": arm,
            "source": source,
            "scores": scores,
            "activation": self.snapshot.activation,
            **changes,
        }
        message = pb.Interaction(
            interaction_id=f"{user}-{time.time_ns()}",
            user_id=user,
            decision_token=seal(self.key, user.encode(), pack(**fields)),
            reactions=[types_pb2.REACTION_LIKE],
        )
        if occurred_at is not None:
            message.occurred_at.FromMilliseconds(occurred_at)
        return message


def recording(client: Client, *interactions: pb.Interaction) -> Any:
    request = pb.RecordInteractionsRequest(interactions=interactions)
    return client.recommendation.RecordInteractions(request)


async def store_version(db: asyncpg.Connection, policy: Policy) -> int:
    """Stores a version with a policy, and returns its number."""
    model = models.NewModel(
        origin="imported",
        run_id=None,
        parent_version=None,
        algorithm="q_learning",
        space=policy.space,
        hyperparameters={},
        metrics={"exploration_rate": policy.epsilon},
        q=np.zeros((policy.space.n_states, N_ACTIONS), np.float32),
        visits=np.zeros((policy.space.n_states, N_ACTIONS), np.int32),
        rewards=np.zeros((policy.space.n_states, N_ACTIONS), np.float32),
        policy=policy,
        objectives={"engagement": 1.0, "diversity": 0.0, "novelty": 0.0},
        main_line=False,
        trained=None,
    )
    return await models.insert(db, models.encode(model))
