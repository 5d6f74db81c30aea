"""An arm as decisions use it: how it chooses, and with what probability.

A policy with one action a state is looked up. Any other is asked for the probabilities of all
actions, from which one is drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from rl.action import N_ACTIONS
from rl.policy import EXPLORATION, GreedyTable, Policy, draw, propensity
from server.contract.vocabulary import ARM_NUMBERS, SOURCE_NUMBERS
from server.serving.answers import DOUBLE, by_whom, how
from server.serving.policies import Arm

States = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """What one arm would do for n people, columns of shape (n,).

    Attributes:
        likeliest: the likeliest action.
        source: where that comes from.
        action: one drawn from the policy and its exploration.
        chances: share of the arm times the probability of every action, (n, 27), or None where
            they are those of `likeliest` and the rest.
    """

    likeliest: NDArray[np.uint8]
    source: NDArray[np.uint8]
    action: NDArray[np.int64]
    chances: NDArray[np.float64] | None


@dataclass(frozen=True)
class ServedArm:
    """What a decision needs of an arm.

    Attributes:
        version, number: the arm's version and its number in the contract.
        policy: what it serves.
        actions, sources: of every state, where the policy is a table with one action a state.
        share: of all people, 0 to 1.
        epsilon: probability of a random action, 0 to 1.
        greedy_chance, other_chance: the arm's share times the propensity of such a table's action
            and of any other one.
        by_whom, how: parts of the answer; `how` by source.
        endings: by source, what follows the token where this is the only arm and a table.
        decided: counts decisions by source.
    """

    version: int
    number: pb.PolicyArm.ValueType
    policy: Policy
    actions: bytes
    sources: bytes
    share: float
    epsilon: float
    greedy_chance: float
    other_chance: float
    by_whom: bytes
    how: tuple[bytes, ...]
    endings: tuple[bytes, ...]
    decided: list[int]

    @property
    def is_table(self) -> bool:
        """Whether it has one action a state."""
        return isinstance(self.policy, GreedyTable)

    def choose(self, states: States, scores: Scores, generator: np.random.Generator) -> Choices:
        """What it would do for n people.

        Args:
            states: state indices, (n,).
            scores: trait scores, 0 to 100, (n, 5).
            generator: draws.
        """
        n = len(states)
        explores = generator.random(n) < self.epsilon
        anything = generator.integers(N_ACTIONS, size=n)
        source = self.policy.sources_of(states).copy()
        if self.is_table:
            likeliest = self.policy.likeliest(states, scores)
            return Choices(likeliest, source, np.where(explores, anything, likeliest), None)
        dist = self.policy.action_dist(states, scores)
        drawn = draw(generator, dist)
        likeliest = dist.argmax(axis=1).astype(np.uint8)
        chances = self.share * ((1.0 - self.epsilon) * dist + self.epsilon / N_ACTIONS)
        return Choices(likeliest, source, np.where(explores, anything, drawn), chances)

    def chance(self, choices: Choices, action: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the arm times the probability with which it takes these actions, (n,)."""
        if choices.chances is None:
            same = action == choices.likeliest
            return np.where(same, self.greedy_chance, self.other_chance)
        found: NDArray[np.float64] = choices.chances[np.arange(len(action)), action]
        return found


def served(
    arm: Arm, epsilon: float, reason: pb.FallbackReason.ValueType, decided: list[int]
) -> ServedArm:
    """Prepares an arm.

    Args:
        arm: what is served to whom.
        epsilon: probability of a random action, 0 to 1.
        reason: why it is the rules that answer, if it is.
        decided: where to count its decisions, by source.
    """
    number = ARM_NUMBERS[arm.name]
    greedy_chance, other_chance = (
        arm.share * propensity(epsilon, greedy=greedy) for greedy in (True, False)
    )
    whom = by_whom(arm.version, number)
    hows = tuple(how(source, reason) for source in SOURCE_NUMBERS)
    table = arm.policy if isinstance(arm.policy, GreedyTable) else None
    return ServedArm(
        version=arm.version,
        number=number,
        policy=arm.policy,
        actions=b"" if table is None else table.actions,
        sources=b"" if table is None else table.sources,
        share=arm.share,
        epsilon=epsilon,
        greedy_chance=greedy_chance,
        other_chance=other_chance,
        by_whom=whom,
        how=hows,
        endings=tuple(
            whom + DOUBLE.pack(other_chance if source == EXPLORATION else greedy_chance) + one
            for source, one in enumerate(hows)
        ),
        decided=decided,
    )
