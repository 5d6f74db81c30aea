"""Where two policies choose differently, on people and contexts that were seen."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.segments import segments
from recparams_rl.policy import Policy
from recparams_rl.state import TRAITS, StateSpace

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Seen:
    """n interactions with known state, columns of shape (n,).

    Attributes:
        state: int32, 0 to n_states - 1.
        person: whose it is, int64.
        traits: scores 0 to 100, float32 (n, 5).
    """

    state: NDArray[np.int32]
    person: NDArray[np.int64]
    traits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.state)


@dataclass(frozen=True)
class Counts:
    """Numbers of interactions and of their people, and of those that changed."""

    interactions: int
    changed_interactions: int
    people: int
    changed_people: int


@dataclass(frozen=True)
class SegmentChange:
    """Counts of the interactions that share one value of one dimension."""

    dimension: str
    value: str
    counts: Counts


@dataclass(frozen=True)
class Replacement:
    """An action that is chosen in place of another: in how many interactions, of how many people.

    Attributes:
        before, after: indices of actions, 0 to 26.
    """

    before: int
    after: int
    interactions: int
    people: int


@dataclass(frozen=True)
class PolicyChange:
    """Where two policies choose differently.

    Attributes:
        counts: of all interactions.
        segments: the same by content type, mood, time of day and tercile of each trait.
        replacements: most interactions first.
        changed_states: states, seen or not, in which they differ; None where a policy needs scores.
    """

    counts: Counts
    segments: tuple[SegmentChange, ...]
    replacements: tuple[Replacement, ...]
    changed_states: int | None


def policy_change(space: StateSpace, seen: Seen, before: Policy, after: Policy) -> PolicyChange:
    """Compares the likeliest actions of two policies of one space, without their exploration."""
    chosen = [_likeliest(policy, seen.state, seen.traits) for policy in (before, after)]
    changed = chosen[0] != chosen[1]
    everywhere = np.ones(len(seen), dtype=np.bool_)
    return PolicyChange(
        counts=_counts(seen, changed, everywhere),
        segments=tuple(
            SegmentChange(dimension, value, _counts(seen, changed, rows))
            for dimension, value, rows in segments(space, seen.state, seen.traits)
        ),
        replacements=tuple(_replacements(seen, changed, *chosen)),
        changed_states=_changed_states(space, before, after),
    )


def _likeliest(
    policy: Policy, state: NDArray[np.int32], traits: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Returns the likeliest actions, uint8 (n,), in pieces: 27 probabilities take much memory."""
    pieces = [
        policy.likeliest(state[first : first + _CHUNK], traits[first : first + _CHUNK])
        for first in range(0, len(state), _CHUNK)
    ]
    return np.concatenate([*pieces, np.empty(0, dtype=np.uint8)])


def _counts(seen: Seen, changed: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Counts:
    both = rows & changed
    return Counts(
        int(np.count_nonzero(rows)),
        int(np.count_nonzero(both)),
        len(np.unique(seen.person[rows])),
        len(np.unique(seen.person[both])),
    )


def _replacements(
    seen: Seen, changed: NDArray[np.bool_], before: NDArray[np.uint8], after: NDArray[np.uint8]
) -> Iterator[Replacement]:
    pair = before.astype(np.int64) * N_ACTIONS + after
    found, counts = np.unique(pair[changed], return_counts=True)
    for position in np.lexsort((found, -counts)):
        people = np.unique(seen.person[changed & (pair == found[position])])
        first, second = divmod(int(found[position]), N_ACTIONS)
        yield Replacement(first, second, int(counts[position]), len(people))


def _changed_states(space: StateSpace, before: Policy, after: Policy) -> int | None:
    if before.needs_traits or after.needs_traits:
        return None
    every = np.arange(space.n_states, dtype=np.int32)
    nobody = np.broadcast_to(np.float32(0.0), (space.n_states, len(TRAITS)))
    return int(
        np.count_nonzero(_likeliest(before, every, nobody) != _likeliest(after, every, nobody))
    )
