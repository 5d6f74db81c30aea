"""Deep Q-network: Q-learning with a network in place of the table, made safe for logged data.

    goal = r + discount_factor * Q_target(s', argmax_a' Q(s', a'))
    loss = Huber(goal - Q(s, a)) + conservatism * [log sum_a' exp Q(s, a') - Q(s, a)]

Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015 (replay, target
network); van Hasselt, Guez & Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI
2016 (one network chooses, the other values); Kumar et al., "Conservative Q-Learning for Offline
Reinforcement Learning", NeurIPS 2020 (the second term: what was not logged is not believed to be
good). Without it the maximum picks whatever is overestimated, and no new data set it right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.deep import DeepHyperparameters, DeepLearner, Minibatch, forward
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.network import GreedyNetwork
from recparams_rl.policy import Policy


@dataclass(frozen=True)
class DqnHyperparameters(DeepHyperparameters):
    """Hyperparameters of the deep Q-network.

    Args:
        conservatism: weight of the conservative term, 0 (plain Double DQN) or more.
        huber: error from which the loss grows in proportion, in units of reward, above 0.
    """

    conservatism: float = 0.1
    huber: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("conservatism", self.conservatism, 0, 1e3)
        check_range("huber", self.huber, 1e-6, 1e6)


class Dqn(DeepLearner):
    """Conservative double DQN; publishes the greedy policy of the network."""

    algorithm: ClassVar[str] = "dqn"
    Settings: ClassVar[type[Hyperparameters]] = DqnHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (GreedyNetwork,)
    networks: ClassVar[Mapping[str, int]] = {"q": N_ACTIONS}
    targets: ClassVar[tuple[str, ...]] = ("q",)
    hyperparameters: DqnHyperparameters

    def _loss(self, torch: Any, networks: Mapping[str, Mapping[str, Any]], batch: Minibatch) -> Any:
        return loss(torch, networks["q"], networks["target_q"], batch, self.hyperparameters)

    def publish(self) -> Policy:
        return GreedyNetwork(self.serving_space, self._finite("q"), self.epsilon)


def loss(
    torch: Any,
    online: Mapping[str, Any],
    target: Mapping[str, Any],
    batch: Minibatch,
    settings: DqnHyperparameters,
) -> Any:
    """Returns the loss of a minibatch, a scalar tensor, for any number of inputs and actions.

    Args:
        torch: PyTorch.
        online, target: networks, tensors by name.
        batch: the transitions.
        settings: discount factor, Huber's threshold and conservatism.
    """
    with torch.no_grad():
        best = forward(online, batch.next_x).argmax(dim=1, keepdim=True)
        following = forward(target, batch.next_x).gather(1, best).squeeze(1)
        goal = batch.reward + settings.discount_factor * batch.nonterminal * following
    values = forward(online, batch.x)
    taken = values.gather(1, batch.action[:, None]).squeeze(1)
    error = torch.nn.functional.huber_loss(taken, goal, delta=settings.huber)
    if not settings.conservatism:
        return error
    return error + settings.conservatism * (values.logsumexp(dim=1) - taken).mean()
