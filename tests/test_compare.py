"""`recparams compare`, run as people run it, and what it measures with."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recparams_rl.reward import RewardWeights
from recparams_simulation.compare.logs import simulate
from recparams_simulation.compare.measure import Plan, Trial, draw_held_out, trials
from recparams_simulation.compare.peers import MABWiser, VowpalWabbit
from recparams_simulation.compare.report import Mean, Results
from recparams_simulation.compare.systems import (
    Contestant,
    LearnerSystem,
    RandomSystem,
    RulesSystem,
    one_hot,
)
from recparams_simulation.people.simulator import expected_rewards
from tests.processes import RUN_SECONDS, run, running
from tests.support import ROOT, environment

SMALL = Plan(sizes=(3000,), seeds=1, held_out=1500, visits=100)
WITHOUT_TORCH = """
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *more: None if name == "torch" else find_spec(name, *more)
from recparams_server.cli import main
main()
"""


COMMAND = (sys.executable, "-c", WITHOUT_TORCH, "compare")


def compare(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return run(*COMMAND, *arguments, cwd=ROOT, env=environment("unused"))


def run_all(*systems: Contestant) -> dict[str, Trial]:
    found = trials(SMALL, systems, lambda name, size, seed: None)
    return {one.system: one for one in found}


def test_a_comparison_says_what_each_is_worth(tmp_path: Path) -> None:
    learners = ("q_learning", "lin_ucb", "dqn")
    asked = compare(
        *("--quick", "--no-peers", "--sizes", "500,4000", "--into", tmp_path / "new"),
        *(word for name in learners for word in ("--learner", name)),
    )
    out, err = asked.stdout, asked.stderr
    assert asked.returncode == 0, out + err
    assert "Left out: dqn, since torch is not installed." in err
    assert "population 2, 4,000 interactions" in err

    found = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert found["missing"] == {"dqn": "torch"}
    by = {(one["system"], one["size"], one["seed"]): one for one in found["trials"]}
    names = "rules", "random", "q_learning", "lin_ucb"
    assert set(by) == {(n, size, seed) for n in names for size in (500, 4000) for seed in (0, 1)}
    for seed in (0, 1):
        best = {round(by[n, 500, seed]["value"] + by[n, 500, seed]["regret"], 9) for n in names}
        assert len(best) == 1
        assert abs(by["random", 4000, seed]["value"]) < 0.1
        for name in ("rules", "q_learning", "lin_ucb"):
            assert by[name, 4000, seed]["value"] > by["random", 4000, seed]["value"] + 0.2
        assert by["lin_ucb", 4000, seed]["regret"] < by["lin_ucb", 500, seed]["regret"]

    page = (tmp_path / "new" / "compare.md").read_text()
    assert "(compare.png)" in page
    assert "Left out: dqn, since torch is not installed." in page
    assert all(f"| {name} |" in page for name in names)
    assert (tmp_path / "new" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in out.splitlines() if "±" in line] == [
        line.split()[1] for line in page.split("## Regret")[1].split("## ")[0].splitlines()[6:-1]
    ]


def test_it_can_be_stopped_and_writes_nothing_then(tmp_path: Path) -> None:
    with running(
        *(*COMMAND, "--no-peers", "--learner", "q_learning", "--into", tmp_path),
        cwd=ROOT,
        env=environment("unused"),
        stderr=subprocess.PIPE,
        text=True,
    ) as asked:
        assert asked.stderr is not None
        for line in asked.stderr:
            if "interactions, rules" in line:
                break
        asked.send_signal(signal.SIGINT)
        _, err = asked.communicate(timeout=RUN_SECONDS)
    assert asked.returncode == 130, err
    assert err.strip().endswith("Stopped; nothing was written.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sizes", "50"),
        ("--sizes", "1000,1000"),
        ("--sizes", "1e3"),
        ("--seeds", "0"),
        ("--learner", "sarsa"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    asked = compare(*arguments, "--into", tmp_path / "new")
    assert asked.returncode == 2
    assert f"Invalid value for '{arguments[0]}'" in asked.stderr
    assert not (tmp_path / "new").exists()


def test_outside_libraries_learn_too() -> None:
    peers = MABWiser("LinUCB", alpha=1.0), MABWiser("LinTS", alpha=1.0), VowpalWabbit(epsilon=0.0)
    found = run_all(RandomSystem(), *peers)
    for peer in peers:
        assert found[peer.name].value > found["random"].value + 0.1
        assert found[peer.name].size_bytes > 1000
        assert found[peer.name].decision_seconds > 0.0


def test_a_decision_is_what_the_policy_says() -> None:
    log = simulate(
        np.random.default_rng(1), draw_held_out(np.random.default_rng(2), SMALL).population, 800
    )
    for system in (
        LearnerSystem("q_learning"),
        LearnerSystem("lin_ucb"),
        RulesSystem(),
        VowpalWabbit(epsilon=0.0),
    ):
        system.prepare(log)
        system.reset()
        system.learn()
        some = log[:40]
        chosen = [system.decide(system.encode(*question)) for question in some.questions()]
        assert np.array_equal(system.action_dist(some.traits, some.context), one_hot(chosen))


def test_people_to_judge_by_know_what_is_best() -> None:
    held_out = draw_held_out(np.random.default_rng(5), SMALL)
    best = one_hot(held_out.mean.argmax(axis=1))
    assert held_out.value(best) == pytest.approx(held_out.best)
    assert np.array_equal(
        held_out.mean, expected_rewards(held_out.population, held_out.log.at, RewardWeights())
    )
    behaviour = (
        0.7 * RulesSystem().action_dist(held_out.log.traits, held_out.log.context) + 0.3 / 27
    )
    logged = behaviour[np.arange(len(held_out.log)), held_out.log.action]
    assert np.allclose(logged, held_out.log.propensity)
    found = held_out.estimate(behaviour)
    assert found.value == pytest.approx(held_out.log.reward.mean(), abs=0.03)
    assert held_out.per_visit(RulesSystem(), np.random.default_rng(1)) > held_out.value(
        RulesSystem().action_dist(held_out.log.traits, held_out.log.context)
    )


def test_means_have_intervals_by_students_t() -> None:
    assert Mean.of([1.0, 2.0, 3.0]).text() == "2.000 ± 2.484"
    assert Mean.of([0.25]).text(sign=True) == "+0.250"


def test_one_population_is_no_evidence_and_the_page_says_so() -> None:
    found = [
        Trial("rules", 3000, 0, 0.6, 0.8, 1.5, 0.61, (0.5, 0.7), 0.0, 1e-6, 10),
        Trial("random", 3000, 0, 0.0, 1.4, 0.0, None, None, 0.0, 1e-6, 0),
    ]
    page = Results(SMALL, found, {"dqn": "torch"}).markdown("c.png")
    assert "use --seeds" in page
    assert "| random | 0.000 | refused | 0 of 0 |" in page
    assert "| rules | 1.500 | +0.010 | 1 of 1 |" in page


@pytest.mark.parametrize(
    "wrong", [{"sizes": ()}, {"sizes": (50,)}, {"sizes": (300, 200)}, {"seeds": 0}, {"visits": 0}]
)
def test_a_plan_is_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Plan(**wrong)  # type: ignore[arg-type]
