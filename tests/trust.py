"""What the tests of rollouts and evaluations share: people who react, through the real service."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import types_pb2 as types
from tests.faults import eventually
from tests.support import ADMIN, Client, record, request

LIKE, DISLIKE, SHOWN = (
    types.REACTION_LIKE,
    types.REACTION_DISLIKE,
    types.REACTION_IMPRESSION,
)
MOODS = range(1, 9)
TOLERANCE = 0.08
"""Between shares of some hundred people and those that a rollout asks for."""

React = Callable[[pb.GetRecommendationParamsResponse], Sequence[Any]]


def likes_high_energy(answer: pb.GetRecommendationParamsResponse) -> Sequence[Any]:
    """Likes what has high energy, dislikes the rest."""
    return [LIKE] if answer.action.energy == types.ENERGY_HIGH else [DISLIKE]


async def decide(
    client: Client, users: Sequence[str], **fields: Any
) -> list[pb.GetRecommendationParamsResponse]:
    """A decision for each person, in moods that go round."""
    answers: list[pb.GetRecommendationParamsResponse] = []
    for first in range(0, len(users), 256):
        batch = pb.BatchGetRecommendationParamsRequest(
            requests=[
                request(user, **{"mood": MOODS[(first + n) % len(MOODS)], **fields})
                for n, user in enumerate(users[first : first + 256])
            ]
        )
        answers += (await client.recommendation.BatchGetRecommendationParams(batch)).responses
    return answers


async def live(
    client: Client, users: Sequence[str], react: React, **fields: Any
) -> list[pb.GetRecommendationParamsResponse]:
    """Everybody asks once, reacts, and reports it; returns the decisions."""
    answers = await decide(client, users, **fields)
    await record(
        client,
        *(
            pb.Interaction(
                interaction_id=uuid.uuid4().hex,
                user_id=user,
                decision_token=answer.decision_token,
                reactions=react(answer),
            )
            for user, answer in zip(users, answers, strict=True)
        ),
    )
    return answers


async def set_rollout(client: Client, **fields: Any) -> rpb.Rollout:
    """Moves a rollout."""
    answer = await client.rollout.SetRollout(rpb.SetRolloutRequest(**fields), metadata=ADMIN)
    return answer.rollout


async def get_rollout(client: Client) -> rpb.GetRolloutResponse:
    """Who is served what."""
    return await client.rollout.GetRollout(rpb.GetRolloutRequest(), metadata=ADMIN)


async def serves(client: Client, users: Sequence[str]) -> None:
    """Waits until this server serves what the database says: the versions, and their shares."""

    async def up_to_date() -> bool:
        rollout = (await get_rollout(client)).rollout
        answers = await decide(client, users)
        counts = Counter((a.policy_arm, a.model_version) for a in answers)
        wanted = {(arm.arm, arm.version): arm.percent / 100 for arm in rollout.arms}
        return set(counts) == set(wanted) and all(
            abs(counts[arm] / len(users) - share) < TOLERANCE for arm, share in wanted.items()
        )

    await eventually(up_to_date)


async def get_experiment(client: Client, number: int = 0) -> rpb.GetExperimentResponse:
    """How the arms compare."""
    return await client.rollout.GetExperiment(
        rpb.GetExperimentRequest(experiment_id=number), metadata=ADMIN
    )


def arm_counts(answers: Sequence[pb.GetRecommendationParamsResponse]) -> dict[int, int]:
    """How many people are in each arm."""
    arms, counts = np.unique([answer.policy_arm for answer in answers], return_counts=True)
    return dict(zip(arms.tolist(), counts.tolist(), strict=True))
