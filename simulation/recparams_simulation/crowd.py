"""Simulated people calling a running server, as a backend would on behalf of real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import isnan
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.action import ACTIONS
from recparams_rl.reward import REACTIONS, RewardWeights, reaction_flags, rewards
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, TRAITS
from recparams_simulation.people.population import Ints, Population, Situations
from recparams_simulation.people.simulator import Outcomes, next_situations, react

if TYPE_CHECKING:
    from recparams.v1.recommendation_pb2_grpc import RecommendationServiceAsyncStub

    Stub: TypeAlias = RecommendationServiceAsyncStub

VISITS_TOGETHER = 250
BACKENDS = 4
MOST_PROFILES = 1000
MOST_REQUESTS = 256
SECONDS = 30.0

_CONTENT_TYPE = [types.ContentType.Value(f"CONTENT_TYPE_{name.upper()}") for name in CONTENT_TYPES]
_MOOD = [types.Mood.Value(f"MOOD_{name.upper()}") for name in MOODS]
_TIME_OF_DAY = [types.TimeOfDay.Value(f"TIME_OF_DAY_{name.upper()}") for name in TIMES_OF_DAY]
_REACTION = [types.Reaction.Value(f"REACTION_{name.upper()}") for name in REACTIONS]
_ACTION_INDEX = {
    (
        types.Energy.Value(f"ENERGY_{action.energy.upper()}"),
        types.Diversity.Value(f"DIVERSITY_{action.diversity.upper()}"),
        types.Novelty.Value(f"NOVELTY_{action.novelty.upper()}"),
    ): index
    for index, action in enumerate(ACTIONS)
}
_REACTIONS_OF_MASK = [
    [number for bit, number in enumerate(_REACTION) if mask >> bit & 1]
    for mask in range(1 << len(REACTIONS))
]


@dataclass(frozen=True)
class Crowd:
    """Simulated people under the names `name`-0, `name`-1, ...; their interactions count up too.

    Attributes:
        name: what their names begin with.
        population: the people.
        weights: weights of the reward.
        metadata: sent with each call, such as a key.
        numbers: of the interactions.
    """

    name: str
    population: Population
    weights: RewardWeights
    metadata: tuple[tuple[str, str], ...] = ()
    numbers: count[int] = field(default_factory=count)

    def user_id(self, person: int) -> str:
        """Returns the id by which the server knows a person."""
        return f"{self.name}-{person}"

    def personality(self, person: int) -> types.PersonalityProfile:
        """Returns a person's scores as a message."""
        scores = self.population.traits[person].tolist()
        return types.PersonalityProfile(**dict(zip(TRAITS, scores, strict=True)))


@dataclass(frozen=True)
class VisitTotals:
    """Totals of a number of visits.

    Attributes:
        interactions: number that were recorded.
        total_reward: sum of their rewards.
        likes: number of them that were liked.
        leavers: the people who will not come back, indices.
    """

    interactions: int
    total_reward: float
    likes: int
    leavers: frozenset[int]


async def put_profiles(stub: Stub, crowd: Crowd) -> None:
    """Stores the scores of the whole crowd on the server."""
    for first in range(0, len(crowd.population), MOST_PROFILES):
        people = range(first, min(first + MOST_PROFILES, len(crowd.population)))
        await stub.PutPersonalityProfiles(
            pb.PutPersonalityProfilesRequest(
                profiles=[
                    pb.UserPersonalityProfile(
                        user_id=crowd.user_id(person), personality=crowd.personality(person)
                    )
                    for person in people
                ]
            ),
            timeout=SECONDS,
            metadata=crowd.metadata,
        )


async def play_visits(
    stub: Stub,
    crowd: Crowd,
    visits: Situations,
    rng: np.random.Generator,
    *,
    until: int,
    backends: int = BACKENDS,
    on_visits: Callable[[int], None],
) -> VisitTotals:
    """Plays visits to their end: asks for each decision, reacts, and records the interaction.

    Args:
        stub: the server.
        crowd: the people, whose profiles it has.
        visits: first situation of each visit.
        rng: draws the reactions.
        until: the instant at which all visits have ended, seconds since 1970.
        backends: that call at the same time; with one, calls come in the same order each time.
        on_visits: called with the number of visits just ended.

    Raises:
        grpc.aio.AioRpcError: if a call failed.
    """
    blocks = iter([visits[i : i + VISITS_TOGETHER] for i in range(0, len(visits), VISITS_TOGETHER)])
    totals: list[VisitTotals] = []

    async def backend(own: np.random.Generator) -> None:
        for block in blocks:
            at = block
            while len(at):
                answers = await _decide(stub, crowd, at)
                did = react(own, crowd.population, at, _actions(answers))
                await _record(stub, crowd, at, answers, did)
                totals.append(_totals(crowd, at, did))
                at = next_situations(own, at, did)
                at = at[at.time < until]
            on_visits(len(block))

    try:
        async with asyncio.TaskGroup() as group:
            for own in rng.spawn(backends):
                group.create_task(backend(own))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return VisitTotals(
        sum(one.interactions for one in totals),
        sum(one.total_reward for one in totals),
        sum(one.likes for one in totals),
        frozenset().union(*(one.leavers for one in totals)),
    )


async def greedy_actions(stub: Stub, crowd: Crowd, at: Situations) -> Ints:
    """Returns the server's greedy actions, asked for in batches with the people's scores.

    Requests that the server answered with an exploratory action are sent again.

    Returns:
        Actions 0 to 26, shape (m,).
    """
    actions = np.empty(len(at), dtype=np.int64)
    missing = np.arange(len(at))
    while len(missing):
        again = []
        for first in range(0, len(missing), MOST_REQUESTS):
            rows = missing[first : first + MOST_REQUESTS]
            request = pb.BatchGetRecommendationParamsRequest(
                requests=_requests(crowd, at[rows], with_personality=True)
            )
            batch = await stub.BatchGetRecommendationParams(
                request, timeout=SECONDS, metadata=crowd.metadata
            )
            actions[rows] = _actions(batch.responses)
            again += [
                row
                for row, answer in zip(rows, batch.responses, strict=True)
                if answer.source == pb.DECISION_SOURCE_EXPLORATION
            ]
        missing = np.array(again, dtype=np.intp)
    return actions


def _requests(
    crowd: Crowd, at: Situations, *, with_personality: bool
) -> list[pb.GetRecommendationParamsRequest]:
    columns = (at.person, at.content_type, at.mood, at.time_of_day)
    return [
        pb.GetRecommendationParamsRequest(
            user_id=crowd.user_id(person),
            personality=crowd.personality(person) if with_personality else None,
            content_type=_CONTENT_TYPE[content_type],
            mood=_MOOD[mood],
            time_of_day=_TIME_OF_DAY[time_of_day],
        )
        for person, content_type, mood, time_of_day in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


async def _decide(
    stub: Stub, crowd: Crowd, at: Situations
) -> Sequence[pb.GetRecommendationParamsResponse]:
    """Makes one call for all situations, which are of different people."""
    request = pb.BatchGetRecommendationParamsRequest(
        requests=_requests(crowd, at, with_personality=False)
    )
    answer = await stub.BatchGetRecommendationParams(
        request, timeout=SECONDS, metadata=crowd.metadata
    )
    return answer.responses


def _actions(answers: Sequence[pb.GetRecommendationParamsResponse]) -> Ints:
    chosen = [answer.action for answer in answers]
    levels = [(action.energy, action.diversity, action.novelty) for action in chosen]
    return np.array([_ACTION_INDEX[level] for level in levels], dtype=np.int64)


async def _record(
    stub: Stub,
    crowd: Crowd,
    at: Situations,
    answers: Sequence[pb.GetRecommendationParamsResponse],
    did: Outcomes,
) -> None:
    interactions = [
        pb.Interaction(
            interaction_id=f"{crowd.name}-{next(crowd.numbers)}",
            user_id=crowd.user_id(person),
            decision_token=answer.decision_token,
            reactions=_REACTIONS_OF_MASK[mask],
            completion_rate=None if isnan(completion_rate) else completion_rate,
            mood_change=None if isnan(mood_change) else mood_change,
            occurred_at=Timestamp(seconds=time),
        )
        for person, time, answer, mask, completion_rate, mood_change in zip(
            at.person.tolist(),
            at.time.tolist(),
            answers,
            did.mask.tolist(),
            did.completion_rate.tolist(),
            did.mood_change.tolist(),
            strict=True,
        )
    ]
    await stub.RecordInteractions(
        pb.RecordInteractionsRequest(interactions=interactions),
        timeout=SECONDS,
        metadata=crowd.metadata,
    )


def _totals(crowd: Crowd, at: Situations, did: Outcomes) -> VisitTotals:
    reward = rewards(crowd.weights, did.mask, did.completion_rate, did.mood_change)
    return VisitTotals(
        len(at),
        float(reward.sum(dtype=np.float64)),
        int(np.count_nonzero(reaction_flags(did.mask, "like"))),
        frozenset(at.person[did.leaves].tolist()),
    )
