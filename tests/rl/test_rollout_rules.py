"""Where candidates start and when rollouts move: each rule, and many rollouts with known truth."""

from collections import Counter
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.evaluation.gates import Gate
from recparams_rl.evaluation.rollout import (
    DAY,
    DeliveryRules,
    Move,
    Ramp,
    StepState,
    next_move,
    place_candidate,
)
from recparams_rl.evaluation.sequential import ArmTotals, Verdict, difference

RULES = DeliveryRules()
PASSED = (Gate("interactions", True, 1000.0, 1000.0, "enough"),)
FAILED = (*PASSED, Gate("coverage", False, 1.0, 2.0, "too few states"))
verdicts = st.sampled_from(("better", "worse", "undecided"))
ramps = st.none() | st.builds(
    Ramp, st.integers(1, 99), st.sampled_from((10.0, 25.0, 50.0)), st.floats(0, 30 * DAY)
)
states = st.builds(
    StepState,
    percent=st.sampled_from((5.0, 10.0, 50.0, 100.0)),
    seconds=st.floats(0, 30 * DAY),
    people=st.integers(0, 1000),
    worse=st.booleans(),
    mismatch=st.booleans(),
    difference=st.floats(-1, 1),
    low=st.floats(-1, 1) | st.just(-inf),
)


@pytest.mark.parametrize(
    ("gates", "verdict", "ramp", "outcome", "percent"),
    [
        (FAILED, "better", None, "refused", 0),
        (PASSED, "undecided", None, "started", 10),
        (PASSED, "better", None, "started", 50),
        (PASSED, "better", Ramp(3, 10, DAY), "waiting", 0),
        (PASSED, "undecided", Ramp(3, 50, 30 * DAY), "waiting", 0),
        (PASSED, "undecided", Ramp(3, 25, 30 * DAY), "waiting", 0),
        (PASSED, "undecided", Ramp(3, 10, 6 * DAY), "started", 10),
        (FAILED, "undecided", Ramp(3, 10, 6 * DAY), "refused", 0),
    ],
)
def test_where_a_candidate_starts(
    gates: tuple[Gate, ...], verdict: Verdict, ramp: Ramp | None, outcome: str, percent: float
) -> None:
    found = place_candidate(gates, verdict, ramp, RULES)
    assert (found.outcome, found.percent) == (outcome, percent)


def test_without_steps_a_candidate_is_served_to_everybody_or_waits() -> None:
    at_once = DeliveryRules(steps=(100.0,))
    assert place_candidate(PASSED, "undecided", None, at_once).outcome == "activated"
    by_hand = Ramp(3, 10, 30 * DAY)
    assert place_candidate(PASSED, "better", by_hand, at_once).outcome == "waiting"


def test_of_two_steps_nobody_skips_the_first() -> None:
    assert DeliveryRules(steps=(5.0, 100.0)).start("better") == 5


@given(st.booleans(), verdicts, ramps)
def test_refused_is_what_a_gate_refuses_and_nothing_else(
    passes: bool, verdict: Verdict, ramp: Ramp | None
) -> None:
    found = place_candidate(PASSED if passes else FAILED, verdict, ramp, RULES)
    assert (found.outcome == "refused") == (not passes)
    assert ("too few states" in found.reason) == (not passes)
    assert (found.percent > 0) == (found.outcome == "started")
    if found.outcome == "waiting":
        assert ramp is not None
        assert f"version {ramp.version}" in found.reason


@pytest.mark.parametrize(
    ("change", "action", "percent"),
    [
        ({}, "advance", 50),
        ({"percent": 50.0}, "advance", 100),
        ({"percent": 25.0}, "hold", 25),
        ({"percent": 100.0}, "hold", 100),
        ({"worse": True}, "take_back", 0),
        ({"worse": True, "percent": 100.0}, "take_back", 0),
        ({"seconds": 2 * DAY - 1}, "hold", 10),
        ({"people": 99}, "hold", 10),
        ({"mismatch": True}, "hold", 10),
        ({"mismatch": True, "worse": True}, "take_back", 0),
        ({"difference": nan}, "hold", 10),
        ({"low": -0.1}, "hold", 10),
        ({"low": -inf}, "hold", 10),
        ({"low": -0.1, "seconds": 6 * DAY}, "advance", 50),
        ({"low": -0.1, "seconds": 6 * DAY, "difference": -0.01}, "hold", 10),
        ({"low": -0.1, "seconds": 6 * DAY, "difference": -0.01, "percent": 50.0}, "advance", 100),
        ({"low": -0.1, "seconds": 6 * DAY, "people": 99}, "hold", 10),
    ],
)
def test_when_a_step_is_taken(change: dict[str, float], action: str, percent: float) -> None:
    state = StepState(10.0, 2 * DAY, 100, False, False, difference=0.0, low=-0.099)
    found = next_move(replace(state, **change), RULES)
    assert (found.action, found.percent) == (action, percent)
    assert found.reason


@given(states)
def test_harm_always_takes_back_and_nothing_else_does(state: StepState) -> None:
    assert (next_move(state, RULES).action == "take_back") == state.worse


@given(states)
def test_a_rollout_moves_one_step_up_or_stays(state: StepState) -> None:
    found = next_move(replace(state, worse=False), RULES)
    steps = {10.0: 50.0, 50.0: 100.0}
    if found.action == "advance":
        assert found.percent == steps[state.percent]
        assert state.seconds >= RULES.step_seconds
        assert state.people >= RULES.step_people
        assert not state.mismatch
    else:
        assert found.percent == state.percent


@given(states, st.floats(0, 30 * DAY), st.integers(0, 1000), st.floats(0, 1))
def test_more_time_people_and_evidence_never_hold_a_step_up(
    state: StepState, seconds: float, people: int, gain: float
) -> None:
    state = replace(state, worse=False)
    if next_move(state, RULES).action != "advance":
        return
    more = replace(
        state,
        seconds=state.seconds + seconds,
        people=state.people + people,
        difference=state.difference + gain,
        low=state.low + gain,
    )
    assert next_move(more, RULES).action == "advance"


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": ()},
        {"steps": (10.0, 50.0)},
        {"steps": (50.0, 10.0, 100.0)},
        {"steps": (0.0, 100.0)},
        {"step_seconds": -1.0},
        {"step_people": -1},
        {"tolerance": -0.1},
        {"tolerance": nan},
        {"patience_seconds": 1.0},
    ],
)
def test_impossible_rules(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        DeliveryRules(**bad)  # type: ignore[arg-type]


class TestRollouts:
    """Rollouts of simulated people, looked at every six hours for two weeks.

    A person comes about as often as those of the simulator do (five times a week, some ten times
    as often as others), and likes some of it better than others do (correlation 0.2).
    """

    PEOPLE = 4000
    LOOKS = 4 * 14

    def roll_out(self, rng: np.random.Generator, worse_by: float) -> tuple[float, list[Move]]:
        """Returns the percent a version reaches, and what was done with it."""
        position = rng.random(self.PEOPLE)
        taste = rng.normal(0.4, 0.4, self.PEOPLE)
        visits = rng.gamma(1.5, 5 / 7 / 4 / 1.5, self.PEOPLE)
        percent, arrived, moves = 10.0, 0, []
        person, reward, treated = [], [], []
        for look in range(self.LOOKS):
            who = np.repeat(np.arange(self.PEOPLE), rng.poisson(visits))
            has_it = position[who] < percent / 100
            person.append(who)
            reward.append(taste[who] + rng.normal(0, 0.8, len(who)) - worse_by * has_it)
            treated.append(has_it)
            arms = []
            for mine in (True, False):
                rows = [one == mine for one in treated]
                columns = [
                    np.concatenate([c[r] for c, r in zip(column, rows, strict=True)])
                    for column in (person, reward)
                ]
                arms.append(ArmTotals.of(*columns, np.zeros(len(columns[0]), dtype=np.bool_)))
            # As the service does: half of alpha for each of two comparisons.
            found = difference(*arms, alpha=0.025)
            state = StepState(
                percent=percent,
                seconds=(look + 1 - arrived) * DAY / 4,
                people=min(arm.persons for arm in arms),
                worse=found.verdict == "worse",
                mismatch=False,
                difference=found.value,
                low=found.low,
            )
            move = next_move(state, RULES)
            if move.action == "take_back":
                return 0.0, [*moves, move]
            if move.action == "advance":
                moves.append(move)
                percent, arrived = move.percent, look + 1
                # Weighing by shares, which the service does, is not at issue here.
                person, reward, treated = [], [], []
            if percent == 100:
                break
        return percent, moves

    def test_of_forty_that_are_worse_none_gets_beyond_its_first_step(self) -> None:
        rng = np.random.default_rng(17)
        harms = rng.uniform(0.1, 0.4, 40)
        reached = [self.roll_out(rng, harm) for harm in harms]
        assert all(not any(m.action == "advance" for m in moves) for _, moves in reached), reached
        assert Counter(percent for percent, _ in reached)[0.0] >= 35

    def test_those_that_are_better_advance(self) -> None:
        rng = np.random.default_rng(18)
        reached = Counter(self.roll_out(rng, -0.1)[0] for _ in range(20))
        assert reached == {100.0: 20}

    def test_most_that_are_equal_advance_and_none_is_taken_back(self) -> None:
        rng = np.random.default_rng(19)
        reached = Counter(self.roll_out(rng, 0.0)[0] for _ in range(20))
        assert reached[100.0] >= 11, reached
        assert reached[0.0] == 0
