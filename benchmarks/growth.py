"""How each cost grows: with the interactions trained, and with the states visited."""

import asyncio
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.database import Trained, ask, drop_database, make_database, postgres, train
from benchmarks.measure import Effort, side_by_side
from benchmarks.report import Section, Table
from benchmarks.synthetic import (
    ACTIONS_TRIED,
    SECOND,
    SETTINGS,
    published,
    random_interactions,
    random_model,
)
from recparams_rl.action import N_ACTIONS
from recparams_rl.learners import q_learning
from recparams_rl.learners.tabular import table_statistics
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace
from recparams_rl.transitions import Batch, Interactions, prepare
from recparams_server.store import models
from recparams_server.store.columns import INTERACTIONS

CHART = "growth.png"
# Okabe & Ito: told apart by colour-blind people too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
TRAIN, ASK = "whole run", "from asking to commit"
READ, PREPARE, UPDATE = "reading", "preparing", "updating"
PUBLISH, ENCODE, DECODE, STATISTICS = "smoothing", "encoding", "decoding", "statistics"

Series = dict[int, float]
"""Seconds by size."""


def run(effort: Effort, folder: Path) -> Section:
    """All costs by size; draws `CHART` in the folder."""
    sizes = [10**3, 10**4] if effort.quick else [10**4, 10**5, 10**6, 10**7]
    space, smoothing = effort.space, effort.smoothing
    by_interactions: dict[str, Series] = {name: {} for name in (TRAIN, ASK, READ, PREPARE, UPDATE)}
    smallest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as data, postgres() as server:
        for n in sizes[: effort.of(3, 1)]:
            url = make_database(server, f"growth_{n}", n)
            trained = [train(url, Path(data), **effort.settings) for _ in range(effort.of(3, 1))]
            smallest = smallest or trained[-1].stages
            by_interactions[TRAIN][n] = float(np.median([one.seconds for one in trained]))
            by_interactions[ASK][n] = ask(
                url, Path(data), rounds=effort.of(3, 1), **effort.settings
            )
            by_interactions[READ][n] = float(np.median([one.stages["reading"] for one in trained]))
        memory = _memory(effort, server, Path(data))
    rng = np.random.default_rng(5)
    for n in sizes:
        by_interactions[PREPARE][n], by_interactions[UPDATE][n] = _learning(
            random_interactions(rng, n, space), space, rounds=effort.of(3, 1)
        )

    states = [100, 10**3] if effort.quick else [10**3, 10**4, 10**5, space.n_states]
    by_states: dict[str, Series] = {n: {} for n in (PUBLISH, ENCODE, DECODE, STATISTICS)}
    stored = {}
    for n in states:
        model = random_model(rng, n, space, smoothing)
        spent, stored[n] = _storing(model, smoothing, rounds=effort.of(3, 1))
        for name, seconds in spent.items():
            by_states[name][n] = seconds
    longest = sorted(smallest, key=lambda name: -smallest[name])[:3]
    stages = ", ".join(f"{name} took {_time(smallest[name])}" for name in longest)
    most = max(found[states[-1]] / found[states[0]] for found in by_states.values())
    _draw(folder / CHART, by_interactions, by_states)

    row = INTERACTIONS.row.itemsize
    return Section(
        "Growth",
        [
            "Seconds on one thread, and the exponent of the power of the size that fits them best: "
            "1 is in proportion, 0 does not grow.",
            Table(
                ("interactions", *map(_power, sizes), "exponent"),
                [
                    *(_row(name, found, sizes) for name, found in by_interactions.items()),
                    ("bytes read", *(_size(n * row) for n in sizes), "1"),
                ],
            ),
            "*Whole run* and *reading* are of a training run as a process, from its start to its "
            f"commit, on an embedded Postgres; a row has {row} bytes on the wire. *From asking to "
            "commit* is a run forked from a template, as a server's are but for its first. "
            "*Preparing* chains and sorts rows that are not quite in order, *updating* is "
            f"Q-learning into a table in memory; both on made-up arrays. The exponents cover "
            f"different ranges: {_power(sizes[0])} to {_power(max(by_interactions[TRAIN]))} for "
            f"the first three, to {_power(sizes[-1])} for the others. Of the whole run of "
            f"{_power(sizes[0])}, {stages}; the rest is starting the process and writing.",
            Table(
                ("interactions", *map(_power, memory)),
                [
                    ("peak memory", *(_size(one.peak) for one in memory.values())),
                    ("whole run", *(_time(one.seconds) for one in memory.values())),
                ],
            ),
            "Memory of a run with the default of `training_memory_mb`: interactions beyond it are "
            "on disk, and learned part after part.",
            Table(
                ("states visited", *map(_power, states), "exponent"),
                [
                    *(_row(name, found, states) for name, found in by_states.items()),
                    ("bytes stored", *(_size(stored[n]) for n in states), _exponent(stored)),
                ],
            ),
            f"Of {space.n_states:,} states, {ACTIONS_TRIED} of {N_ACTIONS} actions tried in each "
            "that was visited. *Smoothing* makes the policy, *encoding* compresses and checksums "
            "table and policy, *decoding* is loading the policy from a row already fetched. The "
            "table is an array with a place for every pair and the policy one with a place for "
            "every state, and each of these passes over the whole array: from the fewest states to "
            f"the most, {_power(states[0])} to {_power(states[-1])}, no time grows more than "
            f"{most:.1f}-fold.",
        ],
        charts={"Seconds against interactions and against states visited, both logarithmic": CHART},
    )


def _memory(effort: Effort, server: Any, folder: Path) -> dict[int, Trained]:
    """One run of each of some sizes, of which memory has room for the first alone."""
    found = {}
    for n in (2_000,) if effort.quick else (10**6, 2 * 10**7, 4 * 10**7):
        url = make_database(server, f"memory_{n}", n)
        found[n] = train(url, folder, **effort.settings)
        drop_database(server, f"memory_{n}")
    return found


def _learning(interactions: Interactions, space: StateSpace, *, rounds: int) -> tuple[float, float]:
    """Seconds to prepare interactions, and to learn them."""
    shape = space.n_states, N_ACTIONS
    q, visits = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    preparing: Callable[[], Batch] = partial(
        prepare,
        interactions,
        n_contexts=space.n_contexts,
        session_gap=int(SETTINGS.session_gap_seconds * SECOND),
        settled_before=np.iinfo(np.int64).max,
        min_interactions=1,
    )
    transitions = preparing().transitions
    learning = partial(
        q_learning.train, q, visits, transitions, SETTINGS, states_per_cell=space.n_contexts
    )
    found = side_by_side({PREPARE: preparing, UPDATE: learning}, rounds=rounds)
    return found[PREPARE], found[UPDATE]


class _Fetched:
    """Stands in for a connection whose answer has arrived."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row

    async def fetchrow(self, query: str, *arguments: object) -> Mapping[str, Any]:
        return self._row


def _storing(
    model: models.NewModel, smoothing: Smoothing, *, rounds: int
) -> tuple[dict[str, float], int]:
    """Seconds by what is done with a table, and the bytes stored of table and policy."""
    _, _, _, _, space, _, _, table, _, policy, checksum, *_ = models.encode(model).values
    serving = model.policy.space
    row = {
        "space": space,
        "epsilon": str(model.policy.epsilon),
        "policy": policy,
        "policy_checksum": checksum,
        "policy_kind": model.policy.kind,
    }
    fetched: Any = _Fetched(row)
    loop = asyncio.new_event_loop()
    found = side_by_side(
        {
            PUBLISH: lambda: published(model, smoothing),
            ENCODE: lambda: models.encode(model),
            DECODE: lambda: loop.run_until_complete(models.load_policy(fetched, 1, serving)),
            STATISTICS: lambda: table_statistics(model.q, model.visits),
        },
        rounds=rounds,
    )
    loop.close()
    assert isinstance(table, bytes)
    assert isinstance(policy, bytes)
    return found, len(table) + len(policy)


def _slope(found: Mapping[int, float]) -> float:
    return float(np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0])


def _exponent(found: Mapping[int, float]) -> str:
    return f"{_slope(found):.2f}" if len(found) > 1 else ""


def _row(name: str, found: Series, sizes: Sequence[int]) -> tuple[str, ...]:
    return (name, *(_time(found[n]) if n in found else "" for n in sizes), _exponent(found))


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _size(count: float) -> str:
    return f"{count / 1e6:,.3g} MB" if count < 1e9 else f"{count / 1e9:,.3g} GB"


def _power(n: int) -> str:
    digits = "⁰¹²³⁴⁵⁶⁷⁸⁹"
    power = round(math.log10(n))
    return f"10{digits[power]}" if n == 10**power else f"{n:,}"


def _draw(
    file: Path, by_interactions: Mapping[str, Series], by_states: Mapping[str, Series]
) -> None:
    figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, "interactions", by_interactions)
    _panel(right, "states visited", by_states)
    left.set_ylabel("seconds")
    figure.savefig(file)


def _panel(axes: Axes, what: str, lines: Mapping[str, Series]) -> None:
    for colour, (name, found) in zip(COLOURS, lines.items(), strict=False):
        axes.loglog(list(found), list(found.values()), color=colour, marker="o", linewidth=2)
        axes.annotate(
            name,
            (max(found), found[max(found)]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
        )
    first, last = axes.get_xlim()
    # Room for the names at the ends of the lines.
    axes.set_xlim(first, last * (last / first) ** 0.25)
    powers = range(int(math.log10(min(found))), int(math.log10(max(found))) + 1)
    axes.set_xticks([10**power for power in powers])
    axes.minorticks_off()
    axes.set_xlabel(what)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
