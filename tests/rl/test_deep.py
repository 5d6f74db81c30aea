"""Networks: what PyTorch learned is what NumPy serves, and logged data is not trusted too far."""

from typing import Any

import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.actor_critic import ActorCritic, ActorCriticHyperparameters
from recparams_rl.learners.deep import DeepLearner, Minibatch, forward
from recparams_rl.learners.dqn import Dqn, DqnHyperparameters, loss
from recparams_rl.learners.network import (
    GreedyNetwork,
    SoftmaxNetwork,
    inputs,
    n_inputs,
    new_network,
)
from recparams_rl.packing import pack, unpack
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make deep")

SPACE = StateSpace()
LEARNERS: list[tuple[type[DeepLearner], type[Any]]] = [
    (Dqn, DqnHyperparameters),
    (ActorCritic, ActorCriticHyperparameters),
]


def people(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Scores and the states they give in random contexts."""
    traits = rng.uniform(0, 100, (n, 5)).astype(np.float32)
    context = rng.integers(SPACE.n_contexts, size=n)
    return traits, (SPACE.cells(traits) * SPACE.n_contexts + context).astype(np.int32)


def bandit(rng: np.random.Generator, n: int) -> tuple[Transitions, Any]:
    """Each content type has an action that is worth 1 where others are worth 0; evenly logged."""
    traits, state = people(rng, n)
    best = np.array([3, 14, 25])[state % SPACE.n_contexts // 32]
    action = np.where(rng.random(n) < 0.3, best, rng.integers(N_ACTIONS, size=n)).astype(np.uint8)
    reward = ((action == best) + rng.normal(0, 0.3, n)).astype(np.float32)
    ends = np.full(n, TERMINAL, dtype=np.int32)
    return Transitions(state, action, reward, ends, traits), best


def small(settings: type[Any], **changes: object) -> Any:
    return settings(**{"passes": 4, "batch_size": 64, "least_steps": 1, **changes})


@pytest.mark.parametrize("policy", [GreedyNetwork, SoftmaxNetwork])
def test_numpy_gives_what_pytorch_gives(policy: type[Any]) -> None:
    rng = np.random.default_rng(1)
    net = new_network(rng, n_inputs(SPACE), N_ACTIONS)
    net["bias2"] = rng.normal(size=N_ACTIONS).astype(np.float32)
    traits, state = people(rng, 200)
    x = torch.from_numpy(inputs(SPACE, state % SPACE.n_contexts, traits))
    expected = forward({name: torch.from_numpy(array) for name, array in net.items()}, x)
    served = policy(SPACE, net, 0.1)
    np.testing.assert_allclose(served.outputs(state, traits), expected.numpy(), atol=1e-4)
    dist = served.action_dist(state, traits)
    np.testing.assert_allclose(dist.sum(axis=1), 1.0)
    if policy is SoftmaxNetwork:
        np.testing.assert_allclose(dist, expected.softmax(dim=1).numpy(), atol=1e-5)
    assert (dist.argmax(axis=1) == served.likeliest(state, traits)).all()
    again = policy.from_arrays(SPACE, 0.1, unpack(pack(served.arrays())))
    assert (again.action_dist(state, traits) == dist).all()
    # One at a time is the same up to the order in which a product is summed.
    one = np.vstack([served.outputs(state[i : i + 1], traits[i : i + 1]) for i in range(50)])
    np.testing.assert_allclose(one, served.outputs(state, traits)[:50], atol=1e-4)


@pytest.mark.parametrize("name", ["weight0", "bias2"])
@pytest.mark.parametrize("damage", ["missing", "shape", "dtype", "nan"])
def test_networks_that_do_not_fit_are_refused(name: str, damage: str) -> None:
    net: dict[str, Any] = dict(new_network(np.random.default_rng(1), n_inputs(SPACE), N_ACTIONS))
    if damage == "missing":
        del net[name]
    elif damage == "shape":
        net[name] = net[name][..., :-1]
    elif damage == "dtype":
        net[name] = net[name].astype(np.float64)
    else:
        net[name].flat[0] = np.nan
    with pytest.raises(ValueError, match=f"{name} must be finite float32"):
        GreedyNetwork(SPACE, net, 0.0)


@pytest.mark.parametrize(("learner", "settings"), LEARNERS)
def test_what_is_best_in_each_context_is_found(
    learner: type[DeepLearner], settings: type[Any]
) -> None:
    log, _ = bandit(np.random.default_rng(2), 6000)
    found = learner(SPACE, small(settings, passes=15))
    found.learn(log)
    new, best = bandit(np.random.default_rng(3), 1000)
    assert new.traits is not None
    chosen = found.publish().likeliest(new.state, new.traits)
    assert (chosen == best).mean() > 0.97
    assert found.statistics().total_updates == 6000


def test_what_comes_later_counts() -> None:
    """Action 1 gives less at once, and leads to where 2 more are had: only DQN's goal sees it."""
    rng = np.random.default_rng(4)
    n = 4000
    traits, state = people(rng, n)
    cell = state // SPACE.n_contexts * SPACE.n_contexts
    first = rng.random(n) < 0.5
    state = np.where(first, cell, cell + 50).astype(np.int32)
    action = rng.integers(2, size=n).astype(np.uint8)
    reward = np.where(first, np.where(action == 0, 0.5, 0.0), 2.0).astype(np.float32)
    next_state = np.where(first & (action == 1), cell + 50, TERMINAL).astype(np.int32)
    log = Transitions(state, action, reward, next_state, traits)
    chosen = {}
    for discount_factor in (0.9, 0.0):
        found = Dqn(SPACE, small(DqnHyperparameters, passes=20, discount_factor=discount_factor))
        found.learn(log)
        greedy = found.publish().likeliest(cell[:500].astype(np.int32), traits[:500])
        chosen[discount_factor] = (greedy == 1).mean()
    assert chosen[0.9] > 0.97
    assert chosen[0.0] < 0.03


def test_an_action_that_was_never_logged_is_not_chosen() -> None:
    rng = np.random.default_rng(5)
    traits, state = people(rng, 2000)
    action = rng.integers(3, size=2000).astype(np.uint8)
    # All are bad, so that whatever was never tried looks better.
    reward = np.full(2000, -1.0, dtype=np.float32)
    log = Transitions(state, action, reward, np.full(2000, TERMINAL, dtype=np.int32), traits)
    unseen = {}
    for conservatism in (0.0, 0.5):
        found = Dqn(SPACE, small(DqnHyperparameters, passes=10, conservatism=conservatism))
        found.learn(log)
        unseen[conservatism] = (found.publish().likeliest(state, traits) > 2).mean()
    assert unseen[0.0] > 0.5
    assert unseen[0.5] == 0.0


@pytest.mark.parametrize(("learner", "settings"), LEARNERS)
def test_the_same_seed_gives_the_same_bits(learner: type[DeepLearner], settings: type[Any]) -> None:
    log, _ = bandit(np.random.default_rng(6), 800)
    halves = log[:500], log[500:]

    def learned(*, threads: int, stops: bool, seed: int = 0) -> bytes:
        found = learner(SPACE, small(settings, seed=seed))
        told: list[int] = []
        for half in halves:
            if stops:
                arrays = unpack(pack(found.arrays()))
                found = learner(SPACE, small(settings, seed=seed), arrays=arrays)
            found.learn(half, threads=threads, on_progress=told.append)
        assert sum(told) == 800
        return pack(found.arrays())

    before = torch.get_num_threads()
    once = learned(threads=1, stops=False)
    assert learned(threads=2, stops=True) == once
    assert learned(threads=1, stops=False, seed=1) != once
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("learner", "settings"), LEARNERS)
def test_wrong_input_is_refused(learner: type[DeepLearner], settings: type[Any]) -> None:
    log, _ = bandit(np.random.default_rng(7), 10)
    found = learner(SPACE, small(settings))
    with pytest.raises(ValueError, match="transitions must have traits"):
        found.learn(Transitions(log.state, log.action, log.reward, log.next_state))
    arrays = found.arrays()
    found.learn(log[:0])
    assert found.statistics().total_updates == 0
    with pytest.raises(ValueError, match="counts must be int64"):
        learner(SPACE, small(settings), arrays={**arrays, "counts": np.zeros(1)})
    for name, value in (("batch_size", 1.5), ("passes", 0), ("seed", -1), ("step_size", 2)):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            settings(**{name: value})
    found.network(next(iter(found.networks)))["bias0"][0] = np.inf
    with pytest.raises(ValueError, match="not finite: lower step_size"):
        found.publish()


def test_without_pytorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    log, _ = bandit(np.random.default_rng(8), 10)
    found = Dqn(SPACE, DqnHyperparameters())
    with pytest.raises(ImportError, match=r"pip install 'recparams\[deep\]'"):
        found.learn(log)
    # Publishing and serving go on without it.
    assert log.traits is not None
    assert len(found.publish().likeliest(log.state, log.traits)) == 10


@pytest.mark.slow
def test_cart_pole_is_solved() -> None:
    """gymnasium's CartPole-v1, by the very loss that `Dqn` has, exploring for itself."""
    gymnasium = pytest.importorskip("gymnasium")
    settings = DqnHyperparameters(conservatism=0.0, discount_factor=0.99)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    env = gymnasium.make("CartPole-v1")
    online, target = (
        {
            name: torch.tensor(array, requires_grad=True)
            for name, array in new_network(np.random.default_rng(0), 4, 2).items()
        }
        for _ in range(2)
    )
    optimiser = torch.optim.Adam(online.values(), lr=5e-4)
    memory: list[tuple[Any, ...]] = []
    returns: list[float] = []
    x, _ = env.reset(seed=0)
    total, steps = 0.0, 0
    while len(returns) < 600 and np.mean(returns[-20:] or [0]) < 475:
        steps += 1
        if rng.random() < max(0.02, 1.0 - steps / 5000):
            action = int(rng.integers(2))
        else:
            with torch.no_grad():
                action = int(forward(online, torch.from_numpy(x)[None]).argmax())
        next_x, reward, terminated, truncated, _ = env.step(action)
        memory.append((x, action, reward, next_x, not terminated))
        x, total = next_x, total + float(reward)
        if terminated or truncated:
            returns.append(total)
            x, total = env.reset()[0], 0.0
        if steps > 500:
            drawn = [memory[i] for i in rng.integers(max(0, len(memory) - 50000), len(memory), 128)]
            columns = [torch.from_numpy(np.array(column)) for column in zip(*drawn, strict=True)]
            on = Minibatch(
                columns[0], columns[1], columns[2].float(), columns[3], columns[4].float()
            )
            optimiser.zero_grad()
            loss(torch, online, target, on, settings).backward()
            torch.nn.utils.clip_grad_norm_(list(online.values()), 10)
            optimiser.step()
            if steps % 300 == 0:
                with torch.no_grad():
                    for name, tensor in target.items():
                        tensor.copy_(online[name])
    assert np.mean(returns[-20:]) >= 475, (len(returns), np.mean(returns[-20:]))
