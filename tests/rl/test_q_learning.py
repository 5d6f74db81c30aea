"""Q-learning: the kernel against a plain agent, threads, and problems with known answers."""

from threading import Lock
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS, Action
from recparams_rl.learners.base import Statistics
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import train, update
from recparams_rl.learners.tabular import split_by_cell, table_statistics
from recparams_rl.state import Context, StateSpace
from recparams_rl.transitions import TERMINAL, Transitions
from tests.rl.reference import ReferenceAgent

STATES_PER_CELL = 6
RATE = np.float32(0.1)
DISCOUNT = np.float32(0.95)


def empty(n_states: int, n_actions: int) -> tuple[Any, Any]:
    return (
        np.zeros((n_states, n_actions), dtype=np.float32),
        np.zeros((n_states, n_actions), dtype=np.int32),
    )


def transitions(rows: list[tuple[int, int, float, int]]) -> Transitions:
    return Transitions(
        np.array([row[0] for row in rows], dtype=np.int32),
        np.array([row[1] for row in rows], dtype=np.uint8),
        np.array([row[2] for row in rows], dtype=np.float32),
        np.array([row[3] for row in rows], dtype=np.int32),
    )


def learn(
    q: Any,
    visits: Any,
    rows: list[tuple[int, int, float, int]],
    rate: np.float32 = RATE,
    discount: np.float32 = DISCOUNT,
) -> None:
    t = transitions(rows)
    update(q, visits, t.state, t.action, t.reward, t.next_state, rate, discount)


def random_transitions(seed: int, m: int, cells: int, n_actions: int) -> Transitions:
    """Sorted by cell, cells of very different sizes, successors within the cell."""
    rng = np.random.default_rng(seed)
    cell = np.sort((cells * rng.random(m) ** 3).astype(np.int32))
    state = cell * STATES_PER_CELL + rng.integers(0, STATES_PER_CELL, m)
    following = cell * STATES_PER_CELL + rng.integers(0, STATES_PER_CELL, m)
    return Transitions(
        state.astype(np.int32),
        rng.integers(0, n_actions, m).astype(np.uint8),
        rng.normal(size=m).astype(np.float32),
        np.where(rng.random(m) < 0.3, TERMINAL, following).astype(np.int32),
    )


def referee(t: Transitions, n_states: int, n_actions: int, settings: Hyperparameters) -> Any:
    agent = ReferenceAgent(settings.learning_rate, settings.discount_factor)
    for state, action, reward, following in zip(
        t.state.tolist(), t.action.tolist(), t.reward.tolist(), t.next_state.tolist(), strict=True
    ):
        agent.update(state, action, reward, None if following < 0 else following)
    return agent.tables(n_states, n_actions)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "hyperparameters",
    [Hyperparameters(), Hyperparameters(learning_rate=1.0, discount_factor=0.999)],
    ids=["defaults", "extremes"],
)
def test_any_number_of_threads_equals_the_plain_agent_bit_for_bit(
    threads: int, hyperparameters: Hyperparameters
) -> None:
    cells, n_actions = 40, 27
    t = random_transitions(threads, 20_000, cells, n_actions)
    expected = referee(t, cells * STATES_PER_CELL, n_actions, hyperparameters)
    q, visits = empty(cells * STATES_PER_CELL, n_actions)
    learned: list[int] = []
    lock = Lock()

    def on_progress(count: int) -> None:
        with lock:
            learned.append(count)

    train(
        q,
        visits,
        t,
        hyperparameters,
        states_per_cell=STATES_PER_CELL,
        threads=threads,
        on_progress=on_progress,
    )
    assert q.tobytes() == expected[0].tobytes()
    assert visits.tobytes() == expected[1].tobytes()
    assert sum(learned) == len(t) == visits.sum()


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.integers(0, 2),
            st.floats(-100, 100, width=32),
            st.integers(-1, 5),
        ),
        max_size=40,
    ),
    st.floats(0.0009765625, 1.0, width=32),
    st.floats(0.0, 0.998046875, width=32),
)
def test_the_kernel_equals_the_plain_agent_bit_for_bit(
    rows: list[tuple[int, int, float, int]], rate: float, discount: float
) -> None:
    q, visits = empty(6, 3)
    learn(q, visits, rows, np.float32(rate), np.float32(discount))
    settings = Hyperparameters(learning_rate=rate, discount_factor=discount)
    expected = referee(transitions(rows), 6, 3, settings)
    assert q.tobytes() == expected[0].tobytes()
    assert visits.tobytes() == expected[1].tobytes()


@settings(max_examples=50)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 100))
def test_learning_in_two_parts_is_learning_in_one(first: int, second: int, seed: int) -> None:
    t = random_transitions(seed, first + second, 5, 4)
    whole, parts = empty(30, 4), empty(30, 4)
    train(*whole, t, Hyperparameters(), states_per_cell=STATES_PER_CELL)
    for part in (slice(0, first), slice(first, None)):
        piece = Transitions(t.state[part], t.action[part], t.reward[part], t.next_state[part])
        train(*parts, piece, Hyperparameters(), states_per_cell=STATES_PER_CELL, threads=2)
    assert whole[0].tobytes() == parts[0].tobytes()
    assert whole[1].tobytes() == parts[1].tobytes()


def test_the_seeds_example_session() -> None:
    space = StateSpace()
    personality = (85, 50, 60, 70, 20)
    state1 = space.index(personality, Context("music", "relaxed", "evening"))
    state2 = space.index(personality, Context("music", "energetic", "morning"))
    action1 = Action("low", "diverse", "exploratory").index
    action2 = Action("high", "diverse", "exploratory").index
    q, visits = empty(space.n_states, N_ACTIONS)
    rows = [(state1, action1, 1.0, TERMINAL), (state2, action2, 1.3, TERMINAL)]

    train(q, visits, transitions(rows), Hyperparameters(), states_per_cell=space.n_contexts)
    assert q[state1, action1] == np.float32(0.1)
    assert q[state2, action2] == pytest.approx(0.13)
    assert np.count_nonzero(q) == np.count_nonzero(visits) == visits.sum() == 2
    assert q[state1].argmax() == action1 and q[state2].argmax() == action2

    for _ in range(300):
        train(q, visits, transitions(rows), Hyperparameters(), states_per_cell=space.n_contexts)
    assert q[state1, action1] == pytest.approx(1.0, abs=1e-5)
    assert q[state2, action2] == pytest.approx(1.3, abs=1e-5)

    # Had the second been a few minutes after the first, the first would be worth both.
    chained = [(state1, action1, 1.0, state2)]
    before = q[state1, action1]
    train(q, visits, transitions(chained), Hyperparameters(), states_per_cell=space.n_contexts)
    expected = before + 0.1 * (1.0 + 0.95 * q[state2, action2] - before)
    assert q[state1, action1] == pytest.approx(expected, abs=1e-6)


def test_actions_nobody_tried_do_not_enter_the_maximum() -> None:
    q, visits = empty(2, 3)
    learn(q, visits, [(1, 0, -1.0, TERMINAL), (0, 0, 0.0, 1)], np.float32(1.0))
    assert q[1].tolist() == [-1.0, 0.0, 0.0]
    assert q[0, 0] == np.float32(-0.95)


def test_a_successor_nobody_visited_adds_nothing() -> None:
    q, visits = empty(2, 3)
    q[1] = 7.0
    learn(q, visits, [(0, 0, 0.5, 1)], np.float32(1.0))
    assert q[0, 0] == 0.5


def test_a_state_may_follow_itself() -> None:
    q, visits = empty(1, 1)
    learn(q, visits, [(0, 0, 1.0, 0)] * 2000)
    assert q[0, 0] == pytest.approx(1 / (1 - 0.95), rel=1e-3)


def test_nothing_learns_nothing() -> None:
    q, visits = empty(12, 3)
    train(q, visits, transitions([]), Hyperparameters(), states_per_cell=6, threads=3)
    assert not q.any() and not visits.any()


@settings(max_examples=300)
@given(st.lists(st.integers(0, 9), max_size=60).map(sorted), st.integers(1, 20))
def test_split_keeps_cells_whole_and_covers_everything_once(cells: list[int], parts: int) -> None:
    column = np.array(cells, dtype=np.int32)
    slices = split_by_cell(column, parts)
    assert len(slices) <= parts
    assert [i for part in slices for i in range(len(cells))[part]] == list(range(len(cells)))
    held = [set(cells[part]) for part in slices]
    assert all(held), "a slice is empty"
    assert sum(len(cells_of_part) for cells_of_part in held) == len(set(cells))
    largest_cell = max((cells.count(cell) for cell in cells), default=0)
    for part in slices:
        assert part.stop - part.start <= len(cells) / parts + largest_cell


def test_split_is_even_where_cells_are_small() -> None:
    slices = split_by_cell(np.arange(1000, dtype=np.int32), 8)
    assert [part.stop - part.start for part in slices] == [125] * 8


class Gridworld:
    """4 x 4, -1 a step, two opposite corners end it (Sutton & Barto, example 4.1)."""

    n_states, n_actions = 16, 4
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    ends = (0, 15)

    def step(self, state: int, action: int) -> tuple[float, int]:
        (x, y), (dx, dy) = divmod(state, 4), self.moves[action]
        following = min(3, max(0, x + dx)) * 4 + min(3, max(0, y + dy))
        return -1.0, TERMINAL if following in self.ends else following


def test_it_solves_a_gridworld_exactly() -> None:
    world, gamma = Gridworld(), 0.9
    inner = [s for s in range(world.n_states) if s not in world.ends]
    best = np.zeros((world.n_states, world.n_actions))
    for _ in range(50):
        for s in inner:
            for a in range(world.n_actions):
                reward, following = world.step(s, a)
                best[s, a] = reward + (0.0 if following < 0 else gamma * best[following].max())

    q, visits = empty(world.n_states + 3, world.n_actions)
    sweep = [(s, a, *world.step(s, a)) for s in inner for a in range(world.n_actions)]
    order = np.random.default_rng(0).permutation(len(sweep))
    for _ in range(40):
        learn(q, visits, [sweep[i] for i in order], np.float32(1.0), np.float32(gamma))

    assert q[:16] == pytest.approx(best, abs=1e-5)
    assert not q[16:].any()
    distance = [min(sum(divmod(s, 4)), 6 - sum(divmod(s, 4))) for s in inner]
    assert q[inner].max(axis=1) == pytest.approx(
        [-(1 - gamma**steps) / (1 - gamma) for steps in distance], abs=1e-5
    )


def test_it_approaches_the_optimum_of_a_chancy_chain_with_a_falling_step() -> None:
    """Five states in a row, a move that slips, a small reward near and a large one far."""
    n, gamma, slip = 5, 0.9, 0.2

    def outcome(state: int, action: int, slipped: bool) -> tuple[float, int]:
        step = 1 if (action == 1) != slipped else -1
        if not 0 <= state + step < n:
            return (5.0 if step > 0 else 3.0), TERMINAL
        return 0.0, state + step

    best = np.zeros((n, 2))
    for _ in range(300):
        for s in range(n):
            for a in range(2):
                best[s, a] = sum(
                    chance * (reward + (0.0 if following < 0 else gamma * best[following].max()))
                    for chance, slipped in ((slip, True), (1 - slip, False))
                    for reward, following in [outcome(s, a, slipped)]
                )
    assert best.argmax(axis=1).tolist() == [0, 1, 1, 1, 1]

    rng = np.random.default_rng(7)
    q, visits = empty(n, 2)
    for k in range(1, 6001):
        slipped = rng.random((n, 2)) < slip
        rows = [(s, a, *outcome(s, a, bool(slipped[s, a]))) for s in range(n) for a in range(2)]
        learn(q, visits, rows, np.float32(k**-0.7), np.float32(gamma))
    assert q == pytest.approx(best, abs=0.08)
    assert q.argmax(axis=1).tolist() == best.argmax(axis=1).tolist()


def test_statistics() -> None:
    q, visits = empty(10, 4)
    assert table_statistics(q, visits) == Statistics(0, largest_q=0.0)
    q[0, 0] = 99.0  # not visited: not counted
    q[3, 1], visits[3, 1] = -2.0, 5
    q[3, 2], visits[3, 2] = -1.0, 1
    q[7, 0], visits[7, 0] = -6.0, 4
    assert table_statistics(q, visits) == Statistics(10, 2, 3, -3.0, -1.0, 0.2, 6.0)


def test_statistics_count_beyond_an_int32() -> None:
    q, visits = empty(2, 2)
    visits[:] = 2**31 - 1
    assert table_statistics(q, visits).total_updates == 4 * (2**31 - 1)
