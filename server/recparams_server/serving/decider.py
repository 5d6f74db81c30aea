"""Decisions from memory: state in, action and token out.

Answers are made in wire form, since building messages would cost more than deciding.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION
from recparams_rl.exploration import Exploration
from recparams_rl.policy import EXPLORATION, RULE_BASED
from recparams_rl.state import TRAITS, StateSpace
from recparams_server.contract.vocabulary import (
    ARM_NAMES,
    SOURCE_NUMBERS,
    UNKNOWN_TRAITS,
    ContextNumbers,
    Traits,
    context_table,
)
from recparams_server.serving.answers import (
    ACTION_PARTS,
    PROPENSITY,
    source_part,
    version_and_arm_part,
)
from recparams_server.serving.plain_requests import read_plain
from recparams_server.serving.policies import PolicyHolder, neutral_action
from recparams_server.serving.prepared_arm import PreparedArm, PreparedPlan, prepare_plan
from recparams_server.serving.tokens import DECISION_ID_BITS, RECORD, TokenCodec, pack_record

_SOURCE_COLUMN = np.array(SOURCE_NUMBERS, dtype=np.uint8)


class Decider:
    """Chooses actions and issues their tokens.

    Args:
        holder: holds the policy in memory.
        tokens: issues the tokens.
        exploration: how it explores.
        random_seed: of what is tried by chance, of the whole process; None for another each time.

    Attributes:
        contexts: context index of each (content type, mood, time of day), as enum numbers.
        decided: counts of decisions by (arm, version), each a list with one count a source.
    """

    def __init__(
        self,
        holder: PolicyHolder,
        tokens: TokenCodec,
        exploration: Exploration,
        random_seed: int | None = None,
    ) -> None:
        self._holder = holder
        self._tokens = tokens
        self._exploration = exploration
        self._space: StateSpace = holder.space
        self._n_contexts = holder.space.n_contexts
        if random_seed is not None:
            random.seed(random_seed)
        self._generator = np.random.default_rng(random_seed)
        self.contexts = context_table(holder.space)
        self._context_array = np.full(np.array(list(self.contexts)).max(0) + 1, -1, dtype=np.int32)
        for numbers, index in self.contexts.items():
            self._context_array[numbers] = index
        self.decided: dict[tuple[str, int], list[int]] = {}
        self._plan = self._prepare()

    def answer(self, message: bytes) -> bytes | None:
        """Returns the encoded answer to an encoded request.

        None if the request is not plain (recparams_server/serving/plain_requests.py), or has values
        out of range.
        """
        plain = read_plain(message)
        if plain is None:
            return None
        try:
            return self.decide(*plain)
        except (KeyError, ValueError):
            return None

    def decide(self, user: bytes, traits: Traits, context: ContextNumbers) -> bytes:
        """Returns the encoded answer for a person with a profile.

        Args:
            user: the user id in UTF-8.
            traits: five scores, 0 to 100.
            context: one of `contexts`.

        Raises:
            KeyError: if the context is none of them.
            ValueError: if a score is out of range.
        """
        cell, number = self._space.cell(traits), self.contexts[context]
        state = cell * self._n_contexts + number
        plan = self._plan
        if plan.serving is not self._holder.serving:
            plan = self._current_plan()
        if not plan.is_lookup:
            scores, contexts = np.array([traits]), np.array([context], dtype=np.uint8)
            return self.decide_all([user], scores, contexts)[0]
        arm = plan.only_arm or plan.arm_of(user)
        greedy = action = arm.actions[state]
        source = arm.sources[state]
        propensity = 0.0
        if arm.lookup is not None:
            action, propensity = arm.lookup.explore(cell, number, greedy)
        elif arm.epsilon > 0.0 and random.random() < arm.epsilon:  # noqa: S311 - not secrecy
            action = int(random.random() * N_ACTIONS)  # noqa: S311
        if action != greedy:
            source = EXPLORATION
        shadow = plan.serving.shadow
        if shadow is not None:
            shadow.decisions += 1
            shadow.agreements += shadow.actions[state] == greedy
        if plan.only_arm is not None and arm.lookup is None:
            propensity = arm.greedy_propensity if action == greedy else arm.other_propensity
            ending = arm.endings[source]
        else:
            # Over the arms too: which one a person is in was drawn as well, by the salt.
            for one in plan.arms.values():
                if one is not arm or one.lookup is None:
                    propensity += one.chance_of(cell, number, state, action)
            # Shares that sum to 1 may, in floating point, sum to a little more.
            propensity = min(propensity, 1.0)
            ending = (
                arm.version_and_arm_part + PROPENSITY.pack(propensity) + arm.source_parts[source]
            )
        arm.decided[source] += 1
        # One by one: to call it with starred tuples takes a third longer.
        content_type, mood, time_of_day = context
        openness, conscientiousness, extraversion, agreeableness, neuroticism = traits
        record = pack_record(
            random.getrandbits(DECISION_ID_BITS),
            time.time_ns() // 1_000_000,
            arm.version,
            propensity,
            content_type,
            mood,
            time_of_day,
            action,
            arm.number,
            SOURCE_NUMBERS[source],
            openness,
            conscientiousness,
            extraversion,
            agreeableness,
            neuroticism,
            plan.serving.plan.id,
        )
        return ACTION_PARTS[action] + self._tokens.seal(user, record) + ending

    def decide_without_profile(
        self, user: bytes, reason: pb.FallbackReason.ValueType, context: ContextNumbers
    ) -> bytes:
        """Returns the encoded answer of the rules, at neutral scores, for an unknown person.

        Args:
            user: the user id in UTF-8.
            reason: the fallback reason to state.
            context: one of `contexts`.
        """
        plan = self._current_plan()
        number = plan.arm_of(user).number
        self._counts(ARM_NAMES[number], RULES_VERSION)[RULE_BASED] += 1
        action = neutral_action(context)
        source = SOURCE_NUMBERS[RULE_BASED]
        record = pack_record(
            random.getrandbits(DECISION_ID_BITS),
            time.time_ns() // 1_000_000,
            RULES_VERSION,
            1.0,
            *context,
            action,
            number,
            source,
            *UNKNOWN_TRAITS,
            plan.serving.plan.id,
        )
        ending = (
            version_and_arm_part(RULES_VERSION, number)
            + PROPENSITY.pack(1.0)
            + source_part(source, reason)
        )
        return ACTION_PARTS[action] + self._tokens.seal(user, record) + ending

    def decide_all(
        self, users: list[bytes], traits: NDArray[np.floating], contexts: NDArray[np.uint8]
    ) -> list[bytes]:
        """Returns the encoded answers for n people, in their order.

        Args:
            users: user ids in UTF-8.
            traits: scores, 0 to 100, shape (n, 5).
            contexts: content types, moods and times of day as enum numbers, shape (n, 3).

        Raises:
            KeyError: if a context is none of the attribute `contexts`.
            ValueError: if a score is out of range.
        """
        plan = self._current_plan()
        n = len(users)
        with np.errstate(invalid="ignore"):  # Of signalling NaNs, which are refused below.
            scores = np.asarray(traits, dtype=np.float64)
        states = self._space.cells(scores) * self._n_contexts + self._context_indices(contexts)
        arms = list(plan.arms.values())
        if plan.only_arm is not None:
            which = np.zeros(n, dtype=np.intp)
        else:
            places = {name: place for place, name in enumerate(plan.arms)}
            which = np.array([places[plan.arm_name(user)] for user in users])

        generator = self._generator
        chosen = [arm.choose(states, scores, generator) for arm in arms]
        likeliest = np.choose(which, [one.likeliest for one in chosen])
        action = np.choose(which, [one.action for one in chosen])
        source = np.choose(which, [one.source for one in chosen])
        source[action != likeliest] = EXPLORATION
        propensity = np.zeros(n)
        for arm, one in zip(arms, chosen, strict=True):
            propensity += arm.propensity(one, action)
        np.minimum(propensity, 1.0, out=propensity)
        shadow = plan.serving.shadow
        if shadow is not None:
            shadowed = shadow.policy.likeliest(states, scores)
            shadow.decisions += n
            shadow.agreements += int(np.count_nonzero(shadowed == likeliest))

        records = np.empty(n, dtype=RECORD)
        records["decision_id"] = generator.integers(1 << DECISION_ID_BITS, size=n, dtype=np.uint64)
        records["decided_at"] = time.time_ns() // 1_000_000
        records["model_version"] = np.array([arm.version for arm in arms])[which]
        records["propensity"] = propensity
        for position, name in enumerate(("content_type", "mood", "time_of_day")):
            records[name] = contexts[:, position]
        records["action"] = action
        records["arm"] = np.array([arm.number for arm in arms])[which]
        records["source"] = _SOURCE_COLUMN[source]
        for position, name in enumerate(TRAITS):
            records[name] = scores[:, position]
        records["activation"] = plan.serving.plan.id
        tokens = self._tokens.issue_all(users, records)
        return self._answers(arms, which, action, source, propensity, tokens)

    def _context_indices(self, contexts: NDArray[np.uint8]) -> NDArray[np.int32]:
        table = self._context_array
        if (contexts >= table.shape).any():
            raise KeyError("a context is unknown")
        indices: NDArray[np.int32] = table[tuple(contexts.T)]
        if (indices < 0).any():
            raise KeyError("a context is unknown")
        return indices

    def _answers(
        self,
        arms: Sequence[PreparedArm],
        which: NDArray[np.intp],
        action: NDArray[np.integer],
        source: NDArray[np.uint8],
        propensity: NDArray[np.float64],
        tokens: list[bytes],
    ) -> list[bytes]:
        propensities = propensity.astype("<f8").tobytes()
        answers = []
        rows = zip(which.tolist(), action.tolist(), source.tolist(), tokens, strict=True)
        for i, (w, a, s, token) in enumerate(rows):
            arm = arms[w]
            arm.decided[s] += 1
            ending = (
                arm.endings[s]
                if len(arms) == 1 and arm.is_table and arm.draws is None
                else arm.version_and_arm_part
                + propensities[8 * i : 8 * i + 8]
                + arm.source_parts[s]
            )
            answers.append(ACTION_PARTS[a] + token + ending)
        return answers

    def _counts(self, arm: str, version: int) -> list[int]:
        return self.decided.setdefault((arm, version), [0] * len(SOURCE_NUMBERS))

    def _current_plan(self) -> PreparedPlan:
        if self._plan.serving is not self._holder.serving:
            self._plan = self._prepare()
        return self._plan

    def _prepare(self) -> PreparedPlan:
        return prepare_plan(self._holder.serving, self._exploration, self._counts)
