"""Peers that do a comparable job: MABWiser, Vowpal Wabbit, river, and a plain dict agent."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dict_agent import Key, Move
from benchmarks.measure import Effort, side_by_side
from benchmarks.peer_systems import CAPABILITIES, RiverByState, RiverLinUCB
from benchmarks.report import Goal, Section, Table
from benchmarks.systems import EPSILON, DictOfDicts, Recparams
from recparams_rl.reward import RewardWeights
from recparams_rl.rules import rule_table
from recparams_simulation.compare.logs import (
    BEHAVIOUR_EPSILON,
    CONTEXTS,
    SPACE,
    START,
    Question,
    contexts,
    simulate,
)
from recparams_simulation.compare.peers import MABWiser, VowpalWabbit
from recparams_simulation.compare.systems import System
from recparams_simulation.people.population import (
    Population,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.simulator import expected_rewards

COLUMNS = ("", "learning, rows/s", "preparing, µs", "decision, µs", "from scores, µs", "reward")


def run(effort: Effort, folder: Path) -> Section:
    """All systems on one log and the same questions, in one process."""
    rng = np.random.default_rng(7)
    n = effort.of(200_000, 1_000)
    log = simulate(rng, draw_population(rng, n // 8), n)
    newcomers = draw_population(rng, effort.of(2_000, 100))
    at = draw_visits(rng, newcomers, np.arange(len(newcomers)), START)[: effort.of(2_000, 100)]
    questions = _questions(newcomers, at)

    ours, plain, greedy = (
        Recparams(effort.smoothing),
        DictOfDicts(),
        MABWiser("LinGreedy", epsilon=EPSILON),
    )
    systems: list[System] = [
        ours,
        plain,
        greedy,
        MABWiser("LinUCB", alpha=1.0),
        MABWiser("LinTS", alpha=1.0),
        VowpalWabbit(EPSILON),
        RiverLinUCB(),
        RiverByState(),
    ]
    here = [system for system in systems if system.installed]
    preparing = {system.name: _seconds(partial(system.prepare, log)) / n for system in here}
    # Rows that wait for other systems are no garbage for one to search through while it is timed.
    gc.freeze()
    learning = {name: s / n for name, s in _learning(here, rounds=effort.of(3, 1)).items()}
    publishing = _seconds(ours.publish)

    timed = questions[: effort.of(200, 20)]
    ready = {s.name: [s.encode(*question) for question in timed] for s in here}
    answering = {s.name: partial(_decide_all, s, ready[s.name]) for s in here}
    asking = {s.name: partial(_answer_all, s, timed) for s in here}
    lookup = {
        ours.name: partial(_look_up_all, ours, ready[ours.name]),
        plain.name: partial(_choose_all, plain, ready[plain.name]),
    }
    deciding, from_scores, looking_up = (
        {
            name: spent / len(timed)
            for name, spent in side_by_side(candidates, rounds=rounds, calls=calls).items()
        }
        for candidates, rounds, calls in (
            (answering, effort.of(7, 2), effort.of(5, 1)),
            (asking, effort.of(7, 2), effort.of(5, 1)),
            (lookup, effort.of(25, 5), effort.of(100, 10)),
        )
    )
    gc.unfreeze()

    mean = expected_rewards(newcomers, at, RewardWeights())
    every = np.arange(len(at))
    rules = rule_table(ours.serving)[[ours.encode(*question) for question in questions]]
    earned = {s.name: mean[every, _answer_all(s, questions)].mean() for s in here}
    best = max(earned, key=lambda name: earned[name])
    rows = [
        (
            system.name,
            f"{1 / learning[system.name]:,.0f}",
            f"{preparing[system.name] * 1e6:.2f}",
            f"{deciding[system.name] * 1e6:,.2f}",
            f"{from_scores[system.name] * 1e6:,.2f}",
            f"{earned[system.name]:.3f}",
        )
        if system in here
        else (system.name, "not installed", "", "", "", "")
        for system in systems
    ]
    online = ""
    if greedy in here:
        few = effort.of(1_000, 50)
        spent = _seconds(partial(greedy.learn_online, few))
        online = f" It can also take one row at a time: {few / spent:,.0f} rows/s, of {few:,}."
    installed = {system.needs for system in here if system.needs}
    versions = ", ".join(f"{name} {version(name)}" for name in sorted(installed)) or "No peers"
    encoded = from_scores[plain.name] / from_scores[ours.name]
    lookups = Goal(
        what="policy lookup in process",
        reference="dict of dicts, max over 27",
        ratio=looking_up[plain.name] / looking_up[ours.name],
        hold=50,
    )
    return Section(
        "Peers",
        [
            f"{versions}. The log: {n:,} interactions of {len(np.unique(log.at.person)):,} "
            f"simulated people, decided by the rules with epsilon {BEHAVIOUR_EPSILON}: traits, "
            "context, action, reward, propensity. Every system learns all of it. One process, "
            f"medians of interleaved rounds. Our states are {SPACE.n_states:,}: five bins a trait, "
            f"{SPACE.n_contexts} contexts. The regressions of the peers take the traits as "
            "numbers and the context as 0 and 1, without interactions, at their defaults.",
            Table(COLUMNS, rows),
            "- *learning*: from input in the system's own form. Ours is Q-learning on one thread "
            "into a table in memory; smoothing and publishing a version comes on top, "
            f"{publishing:.2f} s however few the rows. MABWiser fits all rows at once, in closed "
            f"form.{online} Vowpal Wabbit parses its text lines on the way.\n"
            "- *preparing*, a row: bringing the log into that form. Ours encodes, chains and sorts "
            "by cell, in arrays; the others are built row by row in Python, which their input "
            "mostly asks for. The dict agent's includes our sorting.\n"
            "- *decision*: exploration included, from input in the system's own form; *from "
            "scores*: from five scores and a context. Ours is the lookup in the published policy "
            "and the epsilon-greedy draw. The decision token and the RPC are not in it; the peers "
            "have neither.\n"
            "- *reward*: mean expected immediate reward of these decisions, known exactly, in "
            f"{len(at):,} situations of people outside the log. The rules earn "
            f"{mean[every, rules].mean():.3f}, random actions {mean.mean():.3f}, the best ones "
            f"{mean.max(axis=1).mean():.3f}. Ours falls back on the rules and learns discounted "
            "returns; the peers start from nothing and learn the immediate reward. The most is "
            f"earned by {best}: {earned[best]:.3f}, against {earned[ours.name]:.3f} of ours.",
            f"State index to action takes {looking_up[ours.name] * 1e9:.0f} ns with us, and state "
            f"key to the best of 27 takes the dict agent {looking_up[plain.name] * 1e9:,.0f} ns. "
            f"From scores and with exploration the dict agent takes {encoded:.1f} times as long: "
            "encoding the state is most of our decision. Both learn the same transitions in the "
            "same order, to the same values but for rounding; sorting is not in either.",
            CAPABILITIES,
            "Peers are the better choice where a decision must reflect what happened a moment "
            "ago (Vowpal Wabbit and river learn each row as it comes; ours waits for the next "
            "version), where features or actions come and go, and where exploration should "
            "follow uncertainty. They generalise along a trait from few rows; a table knows only "
            "bins, and smooths. None of them, used so, values what an action leads to later.",
        ],
        goals=[lookups],
    )


def _questions(population: Population, at: Situations) -> list[Question]:
    traits = population.traits[at.person].tolist()
    return list(zip(traits, [CONTEXTS[one] for one in contexts(at).tolist()], strict=True))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _learning(systems: Sequence[System], *, rounds: int) -> dict[str, float]:
    """Median seconds to learn the log from nothing, by name; the first round warms up."""
    spent: dict[str, list[float]] = {system.name: [] for system in systems}
    for _ in range(1 + rounds):
        for system in systems:
            system.reset()
            gc.collect()
            spent[system.name].append(_seconds(system.learn))
    return {name: statistics.median(found[1:]) for name, found in spent.items()}


def _decide_all(system: System, ready: Sequence[Any]) -> list[int]:
    decide = system.decide
    return [decide(one) for one in ready]


def _answer_all(system: System, questions: Sequence[Question]) -> list[int]:
    decide, encode = system.decide, system.encode
    return [decide(encode(traits, context)) for traits, context in questions]


def _look_up_all(ours: Recparams, states: Sequence[int]) -> list[int]:
    actions = ours.policy.actions
    return [actions[state] for state in states]


def _choose_all(plain: DictOfDicts, keys: Sequence[Key]) -> list[Move]:
    choose = plain.agent.choose
    return [choose(key) for key in keys]
