"""Advantage actor-critic for logged data, with an entropy bonus.

    advantage = r + discount_factor * V_target(s') - V(s)
    critic:  make Huber(advantage) small
    actor:   make exp(advantage / temperature) * log pi(a|s) + entropy_bonus * H(pi(.|s)) large

The seed's update follows advantage * grad log pi(a|s), which is right where pi itself took the
actions. Logged actions were taken by others, so the weight is exp(advantage / temperature), at most
`largest_weight`: what did better than usual is imitated, what did worse is not, and nothing is made
likelier that was never seen. Peng et al., "Advantage-Weighted Regression", 2019; Wang et al.,
"Critic Regularized Regression", NeurIPS 2020, for the same weights with one-step advantages; Mnih
et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016, for the entropy bonus. V
is that of whoever took the logged actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.deep import DeepHyperparameters, DeepLearner, Minibatch, forward
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.network import SoftmaxNetwork
from recparams_rl.policy import Policy


@dataclass(frozen=True)
class ActorCriticHyperparameters(DeepHyperparameters):
    """Hyperparameters of the actor-critic.

    Args:
        temperature: advantage that makes a logged action weigh e times as much, above 0.
        entropy_bonus: weight of the entropy of the policy in the loss, 0 or more.
        largest_weight: upper limit of the weight of a logged action, at least 1.
    """

    temperature: float = 0.3
    entropy_bonus: float = 0.01
    largest_weight: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 1e-6, 1e6)
        check_range("entropy_bonus", self.entropy_bonus, 0, 1e6)
        check_range("largest_weight", self.largest_weight, 1, 1e9)


class ActorCritic(DeepLearner):
    """Advantage actor-critic; publishes the actor, whose probabilities are the propensities."""

    algorithm: ClassVar[str] = "actor_critic"
    Settings: ClassVar[type[Hyperparameters]] = ActorCriticHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (SoftmaxNetwork,)
    networks: ClassVar[Mapping[str, int]] = {"actor": N_ACTIONS, "critic": 1}
    targets: ClassVar[tuple[str, ...]] = ("critic",)
    hyperparameters: ActorCriticHyperparameters

    def _loss(self, torch: Any, networks: Mapping[str, Mapping[str, Any]], batch: Minibatch) -> Any:
        settings = self.hyperparameters
        with torch.no_grad():
            following = forward(networks["target_critic"], batch.next_x).squeeze(1)
            goal = batch.reward + settings.discount_factor * batch.nonterminal * following
        value = forward(networks["critic"], batch.x).squeeze(1)
        of_critic = torch.nn.functional.huber_loss(value, goal)
        highest = log(settings.largest_weight)
        weight = ((goal - value.detach()) / settings.temperature).clamp(max=highest).exp()
        logs = forward(networks["actor"], batch.x).log_softmax(dim=1)
        taken = logs.gather(1, batch.action[:, None]).squeeze(1)
        entropy = -(logs.exp() * logs).sum(dim=1)
        of_actor = -(weight * taken + settings.entropy_bonus * entropy).mean()
        return of_critic + of_actor

    def publish(self) -> Policy:
        return SoftmaxNetwork(self.serving_space, self._finite("actor"), self.epsilon)
