"""Plans and their arms, prepared once for all decisions.

A policy with one action a state is a table to look up. Any other is asked for the probabilities of
all actions, from which one is drawn.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION
from recparams_rl.draws import Draws
from recparams_rl.exploration import Exploration
from recparams_rl.policy import EXPLORATION, GreedyTable, Policy, draw, propensity, with_epsilon
from recparams_server.contract.vocabulary import ARM_NUMBERS, SOURCE_NUMBERS
from recparams_server.serving.answers import PROPENSITY, source_part, version_and_arm_part
from recparams_server.serving.policies import Arm, Serving

States = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """The choices of one arm for n people; columns of shape (n,).

    Attributes:
        likeliest: the policy's likeliest action, 0 to 26.
        source: the source of the likeliest action, as `recparams_rl.policy` numbers sources.
        action: an action drawn from the policy and its exploration.
        propensities: the arm's share times the probability of every action, (n, 27); None for a
            table without draws, whose propensities are `greedy_propensity` and `other_propensity`
            of the arm.
    """

    likeliest: NDArray[np.uint8]
    source: NDArray[np.uint8]
    action: NDArray[np.int64]
    propensities: NDArray[np.float64] | None


class DrawLookup:
    """The draws of an arm, looked up for one decision at a time.

    Args:
        draws: the draws.
        share: the arm's share of all people, 0 to 1.
        epsilon: probability of a random action, 0 to 1.
    """

    __slots__ = ("_actions", "_cells", "_chances", "_epsilon", "_n", "_scale", "_starts", "_stride")

    def __init__(self, draws: Draws, share: float, epsilon: float) -> None:
        self._n, self._actions, self._starts = draws.n, draws.actions, draws.starts
        self._cells, self._stride = tuple(draws.cells.tolist()), draws.space.n_cells
        self._epsilon, self._scale = epsilon, draws.n / (1.0 - epsilon) if epsilon < 1.0 else 0.0
        self._chances = tuple(
            share * (epsilon / N_ACTIONS + (1.0 - epsilon) * count / draws.n)
            for count in range(draws.n + 1)
        )

    def explore(self, cell: int, context: int, greedy: int) -> tuple[int, float]:
        """Returns an action, and the share times its probability.

        Args:
            cell: the personality cell.
            context: the index of the context.
            greedy: the table's action.
        """
        own = self._cells[cell] + self._stride * context
        start, stop = self._starts[own], self._starts[own + 1]
        chance = random.random()  # noqa: S311 - not secrecy
        action = greedy
        if chance < self._epsilon:
            action = int(random.random() * N_ACTIONS)  # noqa: S311
        else:
            place = start + int((chance - self._epsilon) * self._scale)
            if place < stop:
                action = self._actions[place]
        count = self._actions.count(action, start, stop)
        if action == greedy:
            count += self._n - (stop - start)
        return action, self._chances[count]

    def chance_of(self, cell: int, context: int, action: int, *, is_greedy: bool) -> float:
        """Returns the share times the probability of an action, which may be the table's own."""
        own = self._cells[cell] + self._stride * context
        start, stop = self._starts[own], self._starts[own + 1]
        count = self._actions.count(action, start, stop)
        return self._chances[count + self._n - (stop - start) if is_greedy else count]


@dataclass(frozen=True)
class PreparedArm:
    """An arm with everything that its decisions need.

    Attributes:
        version: the model version; 0 is the rules.
        number: the arm's enum number in the contract.
        policy: the policy that chooses.
        actions, sources: the table's action and source of every state, a byte each; empty where
            the policy is no table.
        share: the arm's share of all people, 0 to 1.
        epsilon: probability of a random action, 0 to 1.
        greedy_propensity, other_propensity: the share times the propensity of a table's action and
            of any other one, without draws.
        draws, lookup: the draws that it explores by, and their lookup; or None.
        version_and_arm_part: the encoded version and arm of its answers.
        source_parts: by source, the encoded source and fallback reason.
        endings: by source, all that follows the token where this is the only arm and a table.
        decided: decisions so far, by source; counted up by the decider.
    """

    version: int
    number: pb.PolicyArm.ValueType
    policy: Policy
    actions: bytes
    sources: bytes
    share: float
    epsilon: float
    greedy_propensity: float
    other_propensity: float
    draws: Draws | None
    lookup: DrawLookup | None
    version_and_arm_part: bytes
    source_parts: tuple[bytes, ...]
    endings: tuple[bytes, ...]
    decided: list[int]

    def chance_of(self, cell: int, context: int, state: int, action: int) -> float:
        """Returns the share times the probability of a table's action.

        Args:
            cell, context, state: where.
            action: the action, 0 to 26.
        """
        is_greedy = self.actions[state] == action
        if self.lookup is None:
            return self.greedy_propensity if is_greedy else self.other_propensity
        return self.lookup.chance_of(cell, context, action, is_greedy=is_greedy)

    @property
    def is_table(self) -> bool:
        """True if the policy has one action a state."""
        return isinstance(self.policy, GreedyTable)

    def choose(self, states: States, scores: Scores, generator: np.random.Generator) -> Choices:
        """Chooses actions for n people.

        Args:
            states: state indices, (n,).
            scores: trait scores, 0 to 100, (n, 5).
            generator: the source of randomness.
        """
        n = len(states)
        explores = generator.random(n) < self.epsilon
        anything = generator.integers(N_ACTIONS, size=n)
        source = self.policy.sources_of(states).copy()
        if isinstance(self.policy, GreedyTable):
            likeliest = self.policy.likeliest(states, scores)
            if self.draws is None:
                return Choices(likeliest, source, np.where(explores, anything, likeliest), None)
            dist = self.draws.dist(states, likeliest)
        else:
            dist = self.policy.action_dist(states, scores)
            likeliest = dist.argmax(axis=1).astype(np.uint8)
        action = np.where(explores, anything, draw(generator, dist))
        return Choices(likeliest, source, action, self.share * with_epsilon(dist, self.epsilon))

    def propensity(self, choices: Choices, action: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the share times the probability that the arm takes these actions, (n,)."""
        if choices.propensities is None:
            is_greedy = action == choices.likeliest
            return np.where(is_greedy, self.greedy_propensity, self.other_propensity)
        found: NDArray[np.float64] = choices.propensities[np.arange(len(action)), action]
        return found


@dataclass(frozen=True)
class PreparedPlan:
    """A plan with everything that decisions need, prepared once for each change of it.

    Attributes:
        serving: the plan.
        arms: its arms by name.
        only_arm: the arm, where there is but one.
        is_lookup: True if every policy in it, the shadow's too, has one action a state.
    """

    serving: Serving
    arms: dict[str, PreparedArm]
    only_arm: PreparedArm | None
    is_lookup: bool

    def arm_of(self, user: bytes) -> PreparedArm:
        """Returns the arm of a person, by the user id in UTF-8."""
        return self.only_arm or self.arms[self.arm_name(user)]

    def arm_name(self, user: bytes) -> str:
        """Returns the name of the arm of a person, by the user id in UTF-8."""
        return self.serving.arm_of(user.decode()).name


def prepare_plan(
    serving: Serving, exploration: Exploration, counts: Callable[[str, int], list[int]]
) -> PreparedPlan:
    """Prepares a plan.

    Args:
        serving: the plan.
        exploration: how it explores.
        counts: returns the counts by source of an arm, by name and version.
    """
    no_model = serving.version == RULES_VERSION
    reason = pb.FALLBACK_REASON_NO_MODEL if no_model else pb.FALLBACK_REASON_UNSPECIFIED
    exploration = exploration.beside(serving.version)
    arms = {
        arm.name: prepare_arm(
            arm,
            exploration,
            reason,
            counts(arm.name, arm.version),
        )
        for arm in serving.arms
    }
    shadow = serving.shadow
    return PreparedPlan(
        serving,
        arms,
        next(iter(arms.values())) if len(arms) == 1 else None,
        all(arm.is_table for arm in arms.values())
        and (shadow is None or isinstance(shadow.policy, GreedyTable)),
    )


def prepare_arm(
    arm: Arm, exploration: Exploration, reason: pb.FallbackReason.ValueType, decided: list[int]
) -> PreparedArm:
    """Prepares an arm.

    Args:
        arm: the arm.
        exploration: how it explores.
        reason: the fallback reason of its answers.
        decided: the counts of its decisions, by source.
    """
    number = ARM_NUMBERS[arm.name]
    epsilon = arm.policy.epsilon if exploration.epsilon is None else exploration.epsilon
    greedy, other = (arm.share * propensity(epsilon, greedy=greedy) for greedy in (True, False))
    beginning = version_and_arm_part(arm.version, number)
    source_parts = tuple(source_part(source, reason) for source in SOURCE_NUMBERS)
    table = arm.policy if isinstance(arm.policy, GreedyTable) else None
    draws = table.draws if table is not None and exploration.by_draws else None
    return PreparedArm(
        version=arm.version,
        number=number,
        policy=arm.policy,
        actions=b"" if table is None else table.actions,
        sources=b"" if table is None else table.sources,
        share=arm.share,
        epsilon=epsilon,
        greedy_propensity=greedy,
        other_propensity=other,
        draws=draws,
        lookup=None if draws is None else DrawLookup(draws, arm.share, epsilon),
        version_and_arm_part=beginning,
        source_parts=source_parts,
        endings=tuple(
            beginning + PROPENSITY.pack(other if source == EXPLORATION else greedy) + part
            for source, part in enumerate(source_parts)
        ),
        decided=decided,
    )
