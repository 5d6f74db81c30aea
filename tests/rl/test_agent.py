"""The agent that takes one step at a time, held to the batch kernel and the rules."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import ACTIONS, N_ACTIONS, Action
from recparams_rl.agent import (
    QLearningAgent,
    RecommendationAction,
    RecommendationState,
    RewardFunction,
)
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import QLearning, update
from recparams_rl.learners.tabular import update_rewards
from recparams_rl.policy import propensity
from recparams_rl.reward import REACTIONS, RewardWeights
from recparams_rl.rules import rule_based_action
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

SPACE = StateSpace(2, ("music",), ("calm", "sad"), ("morning", "night"))
ADA = RecommendationState(75, 60, 40, 80, 30, "music", "calm", "night")

scores = st.floats(0, 100)
states = st.builds(
    RecommendationState,
    *[scores] * 5,
    content_type=st.just("music"),
    mood=st.sampled_from(SPACE.moods),
    time_of_day=st.sampled_from(SPACE.times_of_day),
)
steps = st.tuples(
    states,
    st.sampled_from(ACTIONS),
    st.floats(-100, 100, width=32),
    st.none() | states,
)
rates = st.floats(0.0009765625, 1.0, width=32)
discounts = st.floats(0.0, 0.998046875, width=32)


def taught(*steps: tuple[Any, ...], **settings: Any) -> QLearningAgent:
    agent = QLearningAgent(**{"space": SPACE, "seed": 0, **settings})
    for step in steps:
        agent.update(*step)
    return agent


def columns(taken: list[Any]) -> Transitions:
    return Transitions(
        np.array([state.index(SPACE) for state, *_ in taken], dtype=np.int32),
        np.array([action.index for _, action, *_ in taken], dtype=np.uint8),
        np.array([reward for _, _, reward, _ in taken], dtype=np.float32),
        np.array([TERMINAL if n is None else n.index(SPACE) for *_, n in taken], dtype=np.int32),
    )


def table_of(learner: QLearning) -> tuple[bytes, ...]:
    return learner.q.tobytes(), learner.visits.tobytes(), learner.rewards.tobytes()


@settings(max_examples=60)
@given(st.lists(steps, max_size=30), rates, discounts)
def test_k_steps_are_the_batch_kernel_bit_for_bit(
    taken: list[Any], learning_rate: float, discount_factor: float
) -> None:
    agent = taught(*taken, learning_rate=learning_rate, discount_factor=discount_factor)
    t = columns(taken)
    q, rewards = np.zeros((2, SPACE.n_states, N_ACTIONS), np.float32)
    visits = np.zeros(q.shape, np.int32)
    rate = np.float32(learning_rate)
    update(q, visits, t.state, t.action, t.reward, t.next_state, rate, np.float32(discount_factor))
    update_rewards(rewards, t.state, t.action, t.reward, rate)
    assert table_of(agent.learner) == (q.tobytes(), visits.tobytes(), rewards.tobytes())


@settings(max_examples=50)
@given(st.lists(steps, max_size=30))
def test_k_steps_are_a_training_run_bit_for_bit(taken: list[Any]) -> None:
    """Logs end an episode where the next state is in another cell, and are sorted by cell."""

    def cell(state: RecommendationState) -> int:
        return state.index(SPACE) // SPACE.n_contexts

    taken = [
        (s, a, r, None if following is None or cell(following) != cell(s) else following)
        for s, a, r, following in taken
    ]
    trained = QLearning(SPACE, Hyperparameters())
    trained.learn(columns(sorted(taken, key=lambda step: cell(step[0]))), threads=3)
    agent = taught(*taken)
    assert table_of(agent.learner) == table_of(trained)


@given(states)
def test_where_nothing_was_tried_the_rules_are_greedy(state: RecommendationState) -> None:
    rules = rule_based_action(state.traits, state.context)
    assert QLearningAgent(space=SPACE).get_action(state, explore=False) == rules


def test_greedy_is_the_highest_value_of_what_was_tried_and_the_first_of_equals() -> None:
    first, second, third = ACTIONS[3], ACTIONS[7], ACTIONS[20]
    agent = taught((ADA, second, -1.0))
    assert agent.get_action(ADA, explore=False) == second
    agent.update(ADA, third, -0.5)
    assert agent.get_action(ADA, explore=False) == third
    agent.update(ADA, first, -0.5)
    assert agent.get_action(ADA, explore=False) == first
    elsewhere = replace(ADA, mood="sad")
    rules = rule_based_action(elsewhere.traits, elsewhere.context)
    assert agent.get_action(elsewhere, explore=False) == rules


def test_actions_are_drawn_with_the_propensities_of_epsilon_greedy() -> None:
    agent = taught((ADA, ACTIONS[5], 1.0), exploration_rate=0.4, min_exploration_rate=0.4)
    expected = np.full(N_ACTIONS, propensity(0.4, greedy=False))
    expected[5] = propensity(0.4, greedy=True)
    assert agent.propensities(ADA).tolist() == expected.tolist()
    assert agent.propensities(ADA, explore=False).tolist() == np.eye(N_ACTIONS)[5].tolist()
    n = 4000
    drawn = np.bincount([agent.get_action(ADA).index for _ in range(n)], minlength=N_ACTIONS)
    assert (np.abs(drawn - n * expected) < 5 * np.sqrt(n * expected)).all()
    again = QLearningAgent(space=SPACE, seed=3), QLearningAgent(space=SPACE, seed=3)
    assert [again[0].get_action(ADA) for _ in range(50)] == [
        again[1].get_action(ADA) for _ in range(50)
    ]


def test_exploration_falls_with_each_thousand_updates() -> None:
    agent = QLearningAgent(space=SPACE, exploration_decay=0.5)
    assert agent.exploration_rate == 0.3
    for _ in range(1000):
        agent.update(ADA, ACTIONS[0], 0.0)
    assert agent.exploration_rate == pytest.approx(0.15)
    assert again(agent).exploration_rate == agent.exploration_rate
    assert again(agent, min_exploration_rate=0.2).exploration_rate == 0.2


def test_ucb_tries_all_in_order_and_then_takes_the_highest_bound() -> None:
    agent = QLearningAgent(space=SPACE, selection="ucb", confidence=0.5)
    for action in ACTIONS:
        assert agent.get_action(ADA) == action
        agent.update(ADA, action, float(action.index == 9))
    assert agent.get_action(ADA) == ACTIONS[9]
    assert agent.propensities(ADA).tolist() == np.eye(N_ACTIONS)[9].tolist()
    for _ in range(40):
        agent.update(ADA, ACTIONS[9], 0.0)
    assert agent.get_action(ADA) == ACTIONS[0]
    agent.update(ADA, ACTIONS[2], 1.0)
    assert agent.get_action(ADA, explore=False) == ACTIONS[2]


def again(agent: QLearningAgent, **options: Any) -> QLearningAgent:
    file = io.StringIO()
    agent.save(file)
    file.seek(0)
    return QLearningAgent.load(file, **options)


@settings(max_examples=30)
@given(st.lists(steps, max_size=10), st.lists(steps, max_size=10))
def test_a_saved_agent_goes_on_as_if_it_had_not_stopped(first: list[Any], then: list[Any]) -> None:
    agent = taught(*first, learning_rate=0.25, exploration_schedule="linear")
    back = again(agent)
    assert back.learner.space == SPACE
    assert back.learner.hyperparameters == agent.learner.hyperparameters
    for step in then:
        agent.update(*step)
        back.update(*step)
    assert table_of(back.learner) == table_of(agent.learner)
    assert back.get_stats() == agent.get_stats()


def test_ucb_goes_on_with_its_confidence() -> None:
    agent = taught((ADA, ACTIONS[1], 1.0), selection="ucb", confidence=0.7)
    back = again(agent, selection="ucb")
    assert back.learner.hyperparameters == agent.learner.hyperparameters
    assert not hasattr(again(agent).learner.hyperparameters, "confidence")


def test_a_bare_file_is_read() -> None:
    bare = {str(ADA.to_tuple()): {str(ACTIONS[4].to_tuple()): 0.5}}
    agent = QLearningAgent.load(io.BytesIO(json.dumps(bare).encode()))
    assert agent.get_action(ADA, explore=False) == ACTIONS[4]
    assert agent.get_stats()["total_states"] == 1


def test_statistics() -> None:
    agent = taught((ADA, ACTIONS[0], 1.0), (ADA, ACTIONS[1], -2.0), (ADA, ACTIONS[1], -2.0))
    assert agent.get_stats() == {
        **asdict(agent.learner.statistics()),
        "exploration_rate": agent.exploration_rate,
    }
    assert agent.get_stats() == {
        "total_updates": 3,
        "total_states": 1,
        "total_state_actions": 2,
        "avg_q_value": pytest.approx((0.1 - 0.38) / 2),
        "max_q_value": pytest.approx(0.1),
        "coverage": 1 / SPACE.n_states,
        "largest_q": pytest.approx(0.38),
        "exploration_rate": pytest.approx(0.3 * 0.995**0.003),
    }


def test_names_of_states_and_actions() -> None:
    assert ADA.to_tuple() == (3, 3, 2, 4, 1, "music", "calm", "night")
    assert ADA.to_tuple(SPACE) == (1, 1, 0, 1, 0, "music", "calm", "night")
    for action in ACTIONS:
        assert RecommendationAction(*action.to_tuple()) == action
        assert action.to_recommendation_params() == asdict(action.to_params())


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ((replace(ADA, mood="bored"), ACTIONS[0], 1.0), "no Context.*bored"),
        ((replace(ADA, openness=101), ACTIONS[0], 1.0), "from 0 to 100"),
        ((replace(ADA, openness=np.nan), ACTIONS[0], 1.0), "from 0 to 100"),
        ((ADA, ACTIONS[0], np.inf), "finite"),
        ((ADA, ACTIONS[0], np.nan), "finite"),
        ((ADA, ACTIONS[0], 1e39), "finite"),
        ((ADA, ACTIONS[0], 1.0, replace(ADA, time_of_day="noon")), "noon"),
    ],
)
def test_a_wrong_step_is_refused_and_changes_nothing(step: Any, says: str) -> None:
    agent = taught((ADA, ACTIONS[0], 1.0))
    before = table_of(agent.learner), agent.exploration_rate
    with pytest.raises(ValueError, match=says):
        agent.update(*step)
    assert (table_of(agent.learner), agent.exploration_rate) == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: QLearningAgent(selection="greedy"), "epsilon_greedy, ucb, not 'greedy'"),
        (lambda: QLearningAgent(learning_rate=0), "learning_rate must be"),
        (lambda: QLearningAgent(confidence=1.0), "confidence is no parameter"),
        (lambda: QLearningAgent.load(io.StringIO("{}")), "no model"),
        (lambda: again(taught(), selection="greedy"), "selection must be"),
        (lambda: again(taught(), min_exploration_rate=0.9), "min_exploration_rate"),
        (lambda: taught().get_action(replace(ADA, content_type="opera")), "opera"),
        (lambda: RecommendationAction("low", "diverse", "new"), "novelty"),
        (lambda: RewardFunction.calculate_reward("loved"), "like, .* not 'loved'"),
        (lambda: RewardFunction.calculate_reward(("like", "dislike")), "exclude each other"),
        (lambda: RewardFunction.calculate_reward("like", 1.1), "completion_rate"),
        (lambda: RewardFunction.calculate_reward("like", mood_change=-1.1), "mood_change"),
        (lambda: RewardFunction.calculate_reward("like", np.nan), "completion_rate"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@given(
    st.sets(st.sampled_from(["like", "complete", "share", "impression"])),
    st.none() | st.floats(0, 1, width=32),
    st.none() | st.floats(-1, 1, width=32),
)
def test_a_reward_is_the_sum_of_its_parts(
    reactions: set[str], completion_rate: float | None, mood_change: float | None
) -> None:
    weights = RewardWeights(like=2.0, completion_rate=0.25)
    for given_weights, used in ((None, RewardWeights()), (weights, weights)):
        expected = sum(getattr(used, name) for name in reactions)
        expected += used.completion_rate * (completion_rate or 0.0)
        expected += used.mood_change * (mood_change or 0.0)
        reward = RewardFunction.calculate_reward(
            reactions, completion_rate, mood_change, weights=given_weights
        )
        assert reward == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reaction", REACTIONS)
def test_one_reaction_is_worth_its_weight(reaction: str) -> None:
    expected = np.float32(getattr(RewardWeights(), reaction))
    assert RewardFunction().calculate_reward(reaction) == expected


def test_the_action_is_the_one_there_is() -> None:
    assert RecommendationAction is Action
