"""The Python examples of the specification, as they stand there, on real parts."""

import ast
import asyncio
import inspect
import io
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from examples.backend import CATALOGUE, search
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import training_pb2 as tpb
from recparams_client import RecommendationParams, orchestrator
from recparams_rl.action import ACTIONS
from recparams_rl.agent import (
    QLearningAgent,
    RecommendationAction,
    RecommendationState,
    RewardFunction,
)
from recparams_rl.reward import REACTIONS, RewardWeights
from recparams_rl.state import StateSpace
from recparams_server.app import App
from recparams_server.settings import Settings
from recparams_server.settings.schedule import parse
from tests.faults import SMALL, SPACE
from tests.support import ADMIN, ADMIN_KEY, ROOT, Client, in_process
from tests.test_model_service import export, send
from tests.trust import likes_high_energy, live

EXAMPLE = re.compile(r"^## ([^\n]*)\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(EXAMPLE.findall((ROOT / "tests/specification.md").read_text()))
PAGE = (ROOT / "docs/agent.md").read_text()
PEOPLE = [f"person-{n}" for n in range(40)]


def execute(source: str, name: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs a program that may await at its top level, with some names; returns all of them."""
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, names)
    if inspect.isawaitable(waiting):

        async def wait() -> None:
            await waiting

        asyncio.run(wait())
    return names


def run(heading: str, **names: Any) -> dict[str, Any]:
    return execute(EXAMPLES[heading], heading, names)


def search_catalogue(user_id: str = "", **params: Any) -> list[Any]:
    return search(RecommendationParams(**params), frozenset())


def test_every_example_is_run() -> None:
    text = (ROOT / "tests/specification.md").read_text()
    assert len(EXAMPLES) == text.count("```python") == 12
    ran = re.findall(r'\brun\(\s*"([^"]+)"', Path(__file__).read_text())
    assert set(ran) == EXAMPLES.keys()


def results(heading: str) -> list[Any]:
    """What the comments of an example say that comes out."""
    shown = re.findall(r"^# Result: (.*(?:\n#   .*|\n# \}.*)*)", EXAMPLES[heading], re.MULTILINE)
    names = {"RecommendationAction": RecommendationAction}
    return [eval(re.sub(r"^# ", "", text, flags=re.MULTILINE), names) for text in shown]


def test_a_recommendation() -> None:
    names = run(
        "Recommendation Generation",
        RecommendationState=RecommendationState,
        agent=QLearningAgent(),
        user_id="user-123",
        get_spotify_recommendations=search_catalogue,
    )
    assert [names["action"], names["params"]] == results("Recommendation Generation")
    assert names["recommendations"] and set(names["recommendations"]) < set(CATALOGUE)


def test_hyperparameters() -> None:
    agent = run("Hyperparameters", QLearningAgent=QLearningAgent)["agent"]
    assert agent.learner.hyperparameters == QLearningAgent().learner.hyperparameters
    assert agent.exploration_rate == 0.3


def test_bins() -> None:
    discretize = run("State Space Discretization")["_discretize"]
    for bins in range(1, 11):
        space = StateSpace(bins=bins)
        for score in np.linspace(0, 100, 201).tolist():
            assert space.discretize(score) == discretize(score, bins)
    assert StateSpace().discretize(75) == discretize(75)


@pytest.mark.parametrize("reaction", REACTIONS)
def test_shaped_rewards(reaction: str) -> None:
    reward = run("Reward Shaping", interaction_type=reaction, reward=0.0)["reward"]
    weights = RewardWeights(like=2.0, dislike=-0.5, complete=0, skip=0, share=0)
    assert RewardFunction.calculate_reward(reaction, weights=weights) == reward


def test_upper_confidence_bounds() -> None:
    agent = QLearningAgent(selection="ucb", confidence=2.0, space=SPACE)
    state = RecommendationState(75, 60, 40, 80, 30, "music", "calm", "evening")
    index, names = state.index(SPACE), [action.to_tuple() for action in ACTIONS]
    table: dict[str, Any] = {"q_table": {}, "visit_counts": {}}
    select = run(
        "Multi-Armed Bandit Alternative",
        RecommendationAction=RecommendationAction,
        actions=ACTIONS,
        np=np,
        **table,
    )["ucb_action_selection"]
    rng, taken = np.random.default_rng(0), set()
    for _ in range(80):
        for name, values in (("q_table", agent.learner.q), ("visit_counts", agent.learner.visits)):
            row = zip(names, values[index].tolist(), strict=True)
            table[name][state.to_tuple()] = dict(row)
        action = agent.get_action(state)
        assert action == select(state)
        agent.update(state, action, rng.normal(action.index / 9))
        taken.add(action)
    assert len(taken) == len(ACTIONS)


def test_the_network_has_a_value_for_each_action() -> None:
    torch = pytest.importorskip("torch")
    network = run("Deep Q-Network (DQN)")["QNetwork"](20, len(ACTIONS))
    assert network(torch.zeros(2, 20)).shape == (2, len(ACTIONS))


def test_the_actor_critic_is_a_comment() -> None:
    assert run("Policy Gradient Methods").keys() == {"__builtins__"}


def test_a_training_session() -> None:
    given = {"RecommendationState": RecommendationState, "agent": QLearningAgent(seed=0)}
    names = run("Example Training Session", **given)
    states, actions = ([names[f"{kind}{n}"] for n in (1, 2)] for kind in ("state", "action"))
    learner = names["agent"].learner
    for state, action, reward in zip(states, actions, (1.0, 1.3), strict=True):
        value = learner.q[state.index(learner.space), action.index]
        assert value == pytest.approx(0.1 * reward)
    assert names["agent"].get_stats()["total_updates"] == 2
    assert RewardFunction.calculate_reward(("complete", "share")) == np.float32(names["reward2"])

    suggested = re.findall(
        r"RL suggests: energy=(\w+), diversity=(\w+), novelty=(\w+)",
        EXAMPLES["Example Training Session"],
    )
    untrained = QLearningAgent(exploration_rate=0, min_exploration_rate=0)
    for state, levels in zip(states, suggested, strict=True):
        assert untrained.get_action(state).to_tuple() == levels
    for _ in range(100):
        run("Example Training Session", **{**given, "agent": untrained})
    for state, levels, worth in zip(states, suggested, (1.0, 1.3), strict=True):
        index = RecommendationAction(*levels).index
        value = untrained.learner.q[state.index(untrained.learner.space), index]
        assert value == pytest.approx(worth, rel=1e-4)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
def core(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification's module, which is the client's, next to a server of this test."""
    monkeypatch.setitem(sys.modules, "core", ModuleType("core"))
    monkeypatch.setitem(sys.modules, "core.rl_orchestrator", orchestrator)
    monkeypatch.setenv("RECPARAMS_ADDRESS", f"127.0.0.1:{app.port}")
    monkeypatch.setenv("RECPARAMS_ADMIN_KEY", ADMIN_KEY)
    orchestrator.get_rl_orchestrator.cache_clear()


class Scheduler:
    """Keeps jobs, which a test runs when it likes, and looks at how often they are due."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[Callable[[], Awaitable[Any]], timedelta]] = {}

    def add_job(self, job: Callable[[], Awaitable[Any]], trigger: timedelta, id: str) -> None:
        self.jobs[id] = job, trigger


@pytest.mark.usefixtures("core")
async def test_the_orchestrator(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    await live(client, PEOPLE, likes_high_energy)
    scheduler = Scheduler()

    def examples() -> dict[str, Any]:
        given = {"get_spotify_tracks": search_catalogue}
        names = run("Get Optimized Recommendations", **given)
        names = run("Model Evaluation", **names)
        return run(
            "Training Frequency",
            scheduler=scheduler,
            train_rl_model=names["orchestrator"].train,
            IntervalTrigger=timedelta,
            **{name: value for name, value in names.items() if name != "__builtins__"},
        )

    names = await asyncio.to_thread(examples)
    ours = names["orchestrator"]
    assert ours is orchestrator.get_rl_orchestrator()
    assert names["params"]["genre_count"] == 5
    assert names["spotify_results"] and set(names["spotify_results"]) < set(CATALOGUE)
    found = await client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
    assert found.interactions == len(PEOPLE)
    evaluation = names["evaluation"]
    for name in ("interactions", "users", "average_reward", "like_rate"):
        assert evaluation[name] == getattr(found, name)
    assert evaluation["reaction_counts"] == dict(found.reaction_counts)
    assert evaluation["policies"].keys() == {policy.name for policy in found.policies}

    assert (await asyncio.to_thread(ours.agent.get_stats))["model_version"] == 0
    job, every = scheduler.jobs["rl_training_frequent"]
    trained: Any = await job()
    assert (trained["status"], trained["outcome"]) == ("completed", "activated")
    assert trained["interactions_trained"] == trained["users_trained"] == len(PEOPLE)
    assert trained["average_reward"] == pytest.approx(found.average_reward)
    assert (await ours.train())["outcome"] == "no_change"
    # The service has such a schedule of its own.
    own = parse("0 */6 * * *", "UTC")
    first = own.following(datetime(2026, 1, 1, 1, tzinfo=UTC))
    assert own.following(first) - first == every

    capsys.readouterr()
    await asyncio.to_thread(lambda: run("Q-Table Growth", orchestrator=ours))
    answer = await client.models.GetModel(mpb.GetModelRequest(), metadata=ADMIN)
    held = answer.model.statistics
    assert capsys.readouterr().out.splitlines() == [
        f"States explored: {held.total_states}",
        f"State-actions: {held.total_state_actions}",
        f"Avg Q-value: {held.avg_q_value:.3f}",
        f"Max Q-value: {held.max_q_value:.3f}",
    ]
    stats = await asyncio.to_thread(ours.agent.get_stats)
    assert stats == {"model_version": answer.model.version, **trained["agent_stats"]}
    assert stats["total_updates"] == len(PEOPLE)
    ours.close()


@pytest.mark.usefixtures("core")
async def test_the_page_and_files_of_both(
    app: App, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone, served = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    served = served.replace('"127.0.0.1:50051"', f'"127.0.0.1:{app.port}", decision_timeout=30')
    given = {"search": search_catalogue, "ADMIN_KEY": ADMIN_KEY}

    agent = execute(alone, "alone", {**given})["agent"]
    assert agent.get_stats()["max_q_value"] == pytest.approx(0.18)
    assert agent.get_stats().keys() > {"total_states", "total_state_actions", "avg_q_value"}
    file = (tmp_path / "models/q_table.json").read_bytes()
    imported = (await send(client, file)).model
    for name in ("total_states", "total_state_actions", "avg_q_value", "max_q_value"):
        assert getattr(imported.statistics, name) == agent.get_stats()[name]
    assert tables(load(await export(client, imported.version))) == tables(agent)

    names = await asyncio.to_thread(execute, served, "served", {**given})
    assert not names["params"].decision.is_fallback
    assert names["training"]["interactions_trained"] == 1
    assert names["evaluation"]["average_reward"] == names["evaluation"]["like_rate"] == 1.0
    stats = names["training"]["agent_stats"]
    trained = load(await export(client, names["training"]["model_version"]))
    assert stats.items() <= trained.get_stats().items()
    state = RecommendationState(75, 60, 40, 80, 30, "music", "relaxed", "evening")
    decided = names["params"].decision
    assert trained.get_action(state, explore=False).to_tuple() == (
        *(decided.energy, decided.diversity, decided.novelty),
    )


def load(file: bytes) -> QLearningAgent:
    return QLearningAgent.load(io.BytesIO(file))


def tables(agent: QLearningAgent) -> list[bytes]:
    return [array.tobytes() for array in agent.learner.arrays().values()]
