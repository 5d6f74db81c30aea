"""A log of interactions, and what the estimators and learners take of it."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.comparison import Log
from recparams_rl.evaluation.overlap import bounded_pscore, least_pscore
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import StateSpace
from recparams_rl.transitions import Interactions, Transitions, prepare

Strings = NDArray[np.str_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class InteractionLog:
    """n recorded interactions, columns of shape (n,); names are text, empty where not known.

    Attributes:
        id: int64, unique, in order of arrival.
        occurred_at: datetime64[us], UTC.
        user: int64, position in `user_names`.
        user_names: what each person is called in the file, (u,), also those without rows here.
        traits: scores 0 to 100, float32 (n, 5), NaN where not known.
        content_type, mood, time_of_day: names of recparams_rl.state.
        action: uint8, 0 to 26.
        reactions: masks as in recparams_rl.reward, int64.
        completion_rate: 0 to 1, float32, NaN where not reported.
        mood_change: -1 to 1, float32, NaN where not reported.
        engagement: reward of the reactions, float32.
        reward: what is learned, the weighted sum of the objectives, float32.
        propensity: above 0 up to 1, float32, NaN where not known.
        arm: names of `recparams_rl.arms.ARMS`.
        version: that decided, int64; 0 is the rules, -1 not known.
        source: names of `recparams_rl.policy.SOURCES`.
    """

    id: NDArray[np.int64]
    occurred_at: NDArray[np.datetime64]
    user: NDArray[np.int64]
    user_names: Strings
    traits: Floats
    content_type: Strings
    mood: Strings
    time_of_day: Strings
    action: NDArray[np.uint8]
    reactions: NDArray[np.int64]
    completion_rate: Floats
    mood_change: Floats
    engagement: Floats
    reward: Floats
    propensity: Floats
    arm: Strings
    version: NDArray[np.int64]
    source: Strings

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "InteractionLog":
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return InteractionLog(
            **{name: c if name == "user_names" else c[rows] for name, c in columns.items()}
        )

    def state(self, space: StateSpace) -> NDArray[np.int32]:
        """Returns the state indices of a space, int32 (n,), as `StateSpace.index_columns`."""
        return space.index_columns(
            self.traits,
            _positions(self.content_type, space.content_types),
            _positions(self.mood, space.moods),
            _positions(self.time_of_day, space.times_of_day),
        )

    def interactions(self, space: StateSpace) -> Interactions:
        """Returns what `recparams_rl.transitions.prepare` takes, on the space of learning."""
        return Interactions(
            id=self.id,
            user=self.user,
            time=self.occurred_at.astype(np.int64),
            state=self.state(space),
            action=self.action,
            reward=self.reward,
            traits=self.traits,
        )

    def transitions(
        self,
        space: StateSpace,
        *,
        session_gap_seconds: float = Hyperparameters.session_gap_seconds,
    ) -> Transitions:
        """Returns what `Learner.learn` takes: all interactions whose state is known, chained.

        Args:
            space: the space of learning.
            session_gap_seconds: longest pause within an episode.
        """
        seen = self.interactions(space)
        batch = prepare(
            seen[seen.state >= 0],
            n_contexts=space.n_contexts,
            session_gap=round(session_gap_seconds * 1_000_000),
            settled_before=np.iinfo(np.int64).max,
            min_interactions=1,
        )
        return batch.transitions

    def evaluation_log(self, space: StateSpace, *, exploration: float = 0.0) -> Log:
        """Returns what `evaluation.comparison.compare` takes: rows that estimates can rest on.

        Rows without a known state or a usable propensity are left out, as the server does.

        Args:
            space: the space of the policies to evaluate, as in `Policy.space`.
            exploration: least probability of a random action that was served, 0 to 1: propensities
                far below what it gives are not usable.
        """
        state = self.state(space)
        pscore = bounded_pscore(self.propensity, least_pscore(exploration))
        rows = (state >= 0) & ~np.isnan(pscore)
        return Log(state, self.action, self.engagement, pscore, self.user, self.traits)[rows]


def _positions(names: Strings, vocabulary: tuple[str, ...]) -> NDArray[np.intp]:
    """Returns the position of each name in a vocabulary, -1 for those not in it."""
    distinct, which = np.unique(names, return_inverse=True)
    known: list[int] = [vocabulary.index(one) if one in vocabulary else -1 for one in distinct]
    found: NDArray[Any] = np.array(known, dtype=np.intp)[which]
    return found
