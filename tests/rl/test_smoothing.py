"""Smoothing: a brute-force reference, and what it is for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.learners.hyperparameters import Hyperparameters
from rl.learners.q_learning import train
from rl.rules import rule_table
from rl.smoothing import Smoothing, smooth
from rl.state import StateSpace
from rl.transitions import TERMINAL, Transitions
from tests.rl.reference import personality_kernel, reference_smooth

RATE = 0.1
ONE_CONTEXT = StateSpace(5, ("music",), ("calm",), ("evening",))
TWO_CONTEXTS = StateSpace(5, ("music", "video"), ("calm",), ("evening",))
RULE = 0
"""The rules' action, where a test makes its own."""
ALONE = np.empty((0, 3), dtype=np.int64)
"""Levels of three actions that have nothing in common."""
SQUARE = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
"""Levels of four actions in two dimensions."""


class Table:
    """A table as constant rewards fill it: q of n visits worth r each is r * (1 - 0.9 ** n)."""

    def __init__(self, space: StateSpace, n_actions: int = 3) -> None:
        self.space = space
        self.q = np.zeros((space.n_states, n_actions), dtype=np.float32)
        self.visits = np.zeros((space.n_states, n_actions), dtype=np.int32)
        self.rules = np.full(space.n_states, RULE, dtype=np.uint8)

    def saw(self, state: int, action: int, n: int, reward: float) -> "Table":
        self.q[state, action] = reward * (1.0 - (1.0 - RATE) ** n)
        self.visits[state, action] = n
        return self

    def smoothed(self, **options: float) -> Any:
        return smooth(
            self.space,
            self.q,
            self.visits,
            self.rules,
            learning_rate=RATE,
            smoothing=Smoothing(**{"rule_bonus": 0.1, **options}),
            levels=ALONE,
        )

    def advantage(self, **options: float) -> Any:
        return self.smoothed(**options).advantage

    def best(self, state: int, **options: float) -> int:
        return int(self.advantage(**options)[state].argmax())


def cell_of(openness: int, others: int = 2) -> int:
    """Cell (= state, in one context) of trait bins that differ in openness."""
    return int(np.ravel_multi_index((openness, others, others, others, others), (5,) * 5))


@st.composite
def sparse_tables(draw: st.DrawFn, space: StateSpace, n_actions: int) -> tuple[Any, Any, Any]:
    q = np.zeros((space.n_states, n_actions), dtype=np.float32)
    visits = np.zeros((space.n_states, n_actions), dtype=np.int32)
    for _ in range(draw(st.integers(0, 25))):
        at = draw(st.integers(0, space.n_states - 1)), draw(st.integers(0, n_actions - 1))
        q[at], visits[at] = draw(st.floats(-4, 4, width=32)), draw(st.integers(1, 300))
    rules = draw(
        st.lists(
            st.integers(0, n_actions - 1), min_size=space.n_contexts, max_size=space.n_contexts
        )
    )
    return q, visits, np.tile(np.array(rules, dtype=np.uint8), space.n_cells)


@settings(max_examples=30)
@given(
    st.data(),
    st.floats(0.05, 1.0),
    st.floats(5.0, 60.0),
    st.floats(0.5, 50.0),
    st.floats(0.0, 1.0),
)
def test_it_equals_brute_force(
    data: st.DataObject, rate: float, width: float, shrinkage: float, bonus: float
) -> None:
    space = StateSpace(2, ("music", "game"), ("calm", "sad"), ("evening",))
    levels = data.draw(st.sampled_from([SQUARE, SQUARE[:1], SQUARE[:0]]))
    q, visits, rules = data.draw(sparse_tables(space, 4))
    result = smooth(
        space,
        q,
        visits,
        rules,
        learning_rate=rate,
        smoothing=Smoothing(width, shrinkage, bonus),
        levels=levels,
    )
    expected = reference_smooth(
        space,
        q,
        visits,
        rules,
        learning_rate=rate,
        kernel_width=width,
        shrinkage=shrinkage,
        rule_bonus=bonus,
        levels=levels,
    )
    assert result.advantage.dtype == np.float32
    assert result.advantage == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_every_level_of_the_context_is_a_level() -> None:
    """Two names on every axis, so that each of the levels differs from the next."""
    space = StateSpace(1, ("music", "game"), ("calm", "sad"), ("evening", "night"))
    rng = np.random.default_rng(3)
    q = rng.normal(size=(space.n_states, 4)).astype(np.float32)
    visits = rng.integers(0, 9, size=q.shape).astype(np.int32)
    q[visits == 0] = 0.0
    rules = rng.integers(0, 4, space.n_states).astype(np.uint8)
    smoothing = Smoothing(20.0, 5.0, 0.3)
    result = smooth(space, q, visits, rules, learning_rate=RATE, smoothing=smoothing, levels=SQUARE)
    expected = reference_smooth(
        space,
        q,
        visits,
        rules,
        learning_rate=RATE,
        kernel_width=20.0,
        shrinkage=5.0,
        rule_bonus=0.3,
        levels=SQUARE,
    )
    assert result.advantage == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("bins", "width"), [(2, 20.0), (3, 20.0), (3, 70.0)])
def test_the_separable_kernel_equals_the_sum_over_all_pairs_of_cells(
    bins: int, width: float
) -> None:
    space = StateSpace(bins, ("music",), ("calm", "sad"), ("evening",))
    visits = np.random.default_rng(bins).integers(0, 50, (space.n_states, 3)).astype(np.int32)
    result = smooth(
        space,
        np.zeros(visits.shape, dtype=np.float32),
        visits,
        np.zeros(space.n_states, dtype=np.uint8),
        learning_rate=RATE,
        smoothing=Smoothing(kernel_width=width),
        levels=ALONE,
    )
    of_cell = visits.reshape(space.n_cells, -1).sum(axis=1)
    assert result.evidence.shape == (space.n_cells,)
    assert result.evidence == pytest.approx(personality_kernel(space, width) @ of_cell, rel=1e-5)


def test_without_data_the_advantages_are_the_rules() -> None:
    space = StateSpace(bins=2)
    rules = rule_table(space)
    nothing = np.zeros((space.n_states, 27), dtype=np.float32)
    result = smooth(
        space,
        nothing,
        nothing.astype(np.int32),
        rules,
        learning_rate=RATE,
        smoothing=Smoothing(rule_bonus=0.25),
        levels=ALONE,
    )
    expected = np.zeros_like(nothing)
    expected[np.arange(len(rules)), rules] = 0.25
    assert np.array_equal(result.advantage, expected)
    assert not result.evidence.any()


def test_the_raw_table_is_not_touched() -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(ONE_CONTEXT.n_states, 3)).astype(np.float32)
    visits = rng.integers(0, 3, size=q.shape).astype(np.int32)
    rules = np.zeros(len(q), dtype=np.uint8)
    before = q.tobytes(), visits.tobytes(), rules.tobytes()
    for array in (q, visits, rules):
        array.flags.writeable = False
    smooth(ONE_CONTEXT, q, visits, rules, learning_rate=RATE, smoothing=Smoothing(), levels=ALONE)
    assert (q.tobytes(), visits.tobytes(), rules.tobytes()) == before


def test_a_states_own_data_wins_as_its_visits_grow() -> None:
    """Everybody around prefers action 1, and people in this very state action 2."""
    here = cell_of(2)
    chosen = []
    for n in (1, 3, 10, 30, 100, 1000):
        table = Table(ONE_CONTEXT)
        for state in range(ONE_CONTEXT.n_states):
            table.saw(state, 1, 100, 1.0).saw(state, 2, 100, 0.0)
        table.saw(here, 1, n, 0.0).saw(here, 2, n, 1.0)
        chosen.append(table.best(here))
    assert chosen[0] == 1 and chosen[-1] == 2
    assert chosen == sorted(chosen), "once it wins it stays"


def test_with_much_data_the_advantage_is_the_difference_of_means() -> None:
    table = Table(ONE_CONTEXT)
    for state in range(ONE_CONTEXT.n_states):
        table.saw(state, 0, 10**6, 0.2).saw(state, 1, 10**6, 0.5).saw(state, 2, 10**6, -0.1)
    advantage = table.advantage(rule_bonus=0.5)[0]
    assert advantage == pytest.approx([0.2 - 0.2, 0.5 - 0.05, -0.1 - 0.35], abs=1e-3)


def test_a_cell_borrows_more_from_a_similar_one_than_from_a_distant_one() -> None:
    table = Table(ONE_CONTEXT).saw(cell_of(0), 1, 50, 1.0).saw(cell_of(4), 2, 50, 1.0)
    advantage = table.advantage()
    by_openness = [advantage[cell_of(openness)] for openness in range(5)]
    of_first = [row[1] for row in by_openness]
    of_last = [row[2] for row in by_openness]
    assert of_first == sorted(of_first, reverse=True) and of_last == sorted(of_last)
    assert [int(np.argmax(row[1:])) for row in (by_openness[1], by_openness[3])] == [0, 1]
    assert by_openness[2][1] == pytest.approx(by_openness[2][2], abs=1e-6)


def test_similarity_runs_along_every_trait() -> None:
    centre = (2, 2, 2, 2, 2)
    source = int(np.ravel_multi_index(centre, (5,) * 5))
    advantage = Table(ONE_CONTEXT).saw(source, 1, 50, 1.0).advantage()[:, 1].reshape((5,) * 5)
    for trait in range(5):
        line = np.moveaxis(advantage, trait, 0)[:, 2, 2, 2, 2]
        assert line[2] > line[1] > line[0] and line[2] > line[3] > line[4]
        assert line[:2] == pytest.approx(line[:2:-1])


def test_a_wider_kernel_carries_further() -> None:
    table = Table(ONE_CONTEXT).saw(cell_of(0), 1, 50, 1.0)
    reached = [table.advantage(kernel_width=width)[cell_of(2), 1] for width in (10.0, 20.0, 60.0)]
    assert reached == sorted(reached) and reached[0] < reached[2]


def test_a_context_borrows_from_its_own_content_type_first() -> None:
    space = StateSpace(2, ("music", "video"), ("calm", "sad"), ("evening",))
    music_calm, music_sad, video_calm, video_sad = range(4)
    table = Table(space).saw(music_calm, 1, 30, 1.0).saw(video_sad, 2, 30, 1.0)
    advantage = table.advantage()
    assert advantage[music_sad, 1] > advantage[music_sad, 2]
    assert advantage[video_calm, 2] > advantage[video_calm, 1]


def test_the_rules_choice_in_a_context_survives_what_everybody_does_elsewhere() -> None:
    """The rules are right in both contexts; data of one must not overrule them in the other."""
    table = Table(TWO_CONTEXTS)
    music, video = np.arange(0, table.space.n_states, 2), np.arange(1, table.space.n_states, 2)
    table.rules[music], table.rules[video] = 1, 2
    for state in music[::7]:
        table.saw(int(state), 1, 40, 0.5).saw(int(state), 0, 10, 0.0).saw(int(state), 2, 10, 0.0)
    greedy = table.advantage(rule_bonus=0.5).argmax(axis=1)
    assert (greedy[music] == 1).all()
    assert (greedy[video] == 2).all()


def test_rules_that_are_wrong_everywhere_are_overruled_everywhere() -> None:
    table = Table(ONE_CONTEXT)
    for state in range(0, table.space.n_states, 3):
        table.saw(state, RULE, 40, -0.5).saw(state, 1, 40, 0.5)
    assert (table.advantage(rule_bonus=0.5).argmax(axis=1) == 1).all()


def test_a_few_interactions_do_not_overrule_the_rules_in_other_contexts() -> None:
    table = Table(TWO_CONTEXTS).saw(0, 1, 1, 0.5)
    advantage = table.advantage(rule_bonus=0.5)
    assert (advantage[1::2].argmax(axis=1) == RULE).all()


def test_an_action_tried_in_happy_states_is_not_preferred_for_that() -> None:
    """Action 1 is tried mostly where life is good, action 2 where it is not; 2 is better."""
    table = Table(TWO_CONTEXTS)
    for cell in range(0, table.space.n_cells, 2):
        happy, sad = 2 * cell, 2 * cell + 1
        table.saw(happy, 1, 90, 2.0).saw(happy, 2, 10, 2.2)
        table.saw(sad, 1, 10, -1.0).saw(sad, 2, 90, -0.8)
    naive = (table.q * table.visits).sum(axis=0) / np.maximum(1, table.visits.sum(axis=0))
    assert naive[1] > naive[2], "or the case does not confound"
    advantage = table.advantage()
    assert (advantage[:, 2] > advantage[:, 1]).all()


def test_an_action_that_alone_was_tried_keeps_what_it_earned() -> None:
    for reward in (0.6, -0.6):
        table = Table(ONE_CONTEXT)
        for state in range(ONE_CONTEXT.n_states):
            table.saw(state, 1, 200, reward)
        assert table.advantage()[:, 1] == pytest.approx(reward, abs=1e-3)


@settings(max_examples=10)
@given(st.floats(-3.0, 3.0), st.integers(0, 1000))
def test_a_constant_added_to_every_reward_changes_no_choice(constant: float, seed: int) -> None:
    """In a one-step problem where everything was tried: only comparisons matter."""
    space = StateSpace(2, ("music", "video"), ("calm",), ("evening",))
    rng = np.random.default_rng(seed)
    n, m = 3, 60_000
    quality = rng.permuted(np.tile([0.0, 0.5, 1.0], (space.n_states, 1)), axis=1)
    state = np.sort(rng.integers(0, space.n_states, m)).astype(np.int32)
    action = rng.integers(0, n, m).astype(np.uint8)
    reward = quality[state, action] + rng.normal(0.0, 0.05, m)
    ends = np.full(m, TERMINAL, dtype=np.int32)
    greedy = []
    for shift in (0.0, constant):
        q = np.zeros((space.n_states, n), dtype=np.float32)
        visits = np.zeros((space.n_states, n), dtype=np.int32)
        shifted = (reward + shift).astype(np.float32)
        train(
            q,
            visits,
            Transitions(state, action, shifted, ends),
            Hyperparameters(),
            states_per_cell=space.n_contexts,
        )
        smoothed = smooth(
            space,
            q,
            visits,
            np.zeros(space.n_states, dtype=np.uint8),
            learning_rate=RATE,
            smoothing=Smoothing(),
            levels=ALONE,
        )
        greedy.append(smoothed.advantage.argmax(axis=1).tolist())
    assert greedy[0] == greedy[1] == quality.argmax(axis=1).tolist()


@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_values_are_corrected_for_starting_at_zero(rate: float, n: int) -> None:
    """Constant rewards give their value back, whatever the step size and however few they are."""
    space = StateSpace(1, ("music",), ("calm",), ("evening",))
    q = np.zeros((1, 2), dtype=np.float32)
    visits = np.zeros((1, 2), dtype=np.int32)
    column = np.zeros(n, dtype=np.int32)
    train(
        q,
        visits,
        Transitions(column, column.astype(np.uint8), column + np.float32(2.0), column + TERMINAL),
        Hyperparameters(learning_rate=rate),
        states_per_cell=1,
    )
    result = smooth(
        space,
        q,
        visits,
        np.ones(1, dtype=np.uint8),
        learning_rate=rate,
        smoothing=Smoothing(shrinkage=1e-3, rule_bonus=0.0),
        levels=ALONE,
    )
    assert result.advantage[0] == pytest.approx([2.0, 0.0], rel=1e-3)


def test_counts_as_large_as_a_file_may_hold() -> None:
    """They must not size an array."""
    table = Table(ONE_CONTEXT).saw(7, 1, 1, 0.0)
    table.q[7, 1], table.visits[7, 1] = 0.5, 2**31 - 1
    result = table.smoothed()
    assert np.isfinite(result.advantage).all()
    assert result.advantage[7, 1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_width": 0.0},
        {"kernel_width": -1.0},
        {"kernel_width": float("nan")},
        {"shrinkage": 0.0},
        {"shrinkage": float("nan")},
        {"shrinkage": float("inf")},
        {"rule_bonus": -0.1},
        {"rule_bonus": float("nan")},
        {"rule_bonus": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Smoothing(**options)


def test_what_actions_share_is_learned_of_all_of_them() -> None:
    """A level that was good in some actions is expected to be good in one that was never tried."""
    space, levels = ONE_CONTEXT, np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    table = Table(space, 4)
    state = cell_of(2)
    # Action 3 was not: it shares a level with 2, which did well, and one with 1.
    table.saw(state, 0, 30, 0.0).saw(state, 1, 30, 0.1).saw(state, 2, 30, 1.0)
    smoothed = smooth(
        space,
        table.q,
        table.visits,
        table.rules,
        learning_rate=RATE,
        smoothing=Smoothing(rule_bonus=0.0),
        levels=levels,
    ).advantage[state]
    alone = smooth(
        space,
        table.q,
        table.visits,
        table.rules,
        learning_rate=RATE,
        smoothing=Smoothing(rule_bonus=0.0),
        levels=levels[:0],
    ).advantage[state]
    assert smoothed[3] > smoothed[1]
    assert smoothed[3] > smoothed[0]
    assert alone[3] == 0.0
