"""Boltzmann exploration: the better an action is, the likelier it is taken.

    pi(a|s) proportional to exp(advantage(s, a) / temperature)

Sutton & Barto, 2nd ed., section 2.8 (there with preferences for values); the advantages are those
of Q-learning's table, smoothed (recparams_rl/smoothing.py), in units of reward. It is how the
policy explores where it is served with `exploration=posterior`, to the next of 24 draws
(recparams_rl/draws.py); without exploration it takes the best action, as Q-learning does.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.draws import rounded
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.numerics import softmax
from recparams_rl.smoothing import Smoothed


@dataclass(frozen=True)
class BoltzmannHyperparameters(Hyperparameters):
    """Hyperparameters of Boltzmann exploration.

    Args:
        temperature: advantage, in units of reward, that makes an action e times as likely; above 0.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 1e-6, 1e6)


class Boltzmann(QLearning):
    """Q-learning whose draws are of the Boltzmann distribution over smoothed advantages."""

    algorithm: ClassVar[str] = "boltzmann"
    Settings: ClassVar[type[Hyperparameters]] = BoltzmannHyperparameters
    hyperparameters: BoltzmannHyperparameters

    def _draw(
        self,
        smoothed: Smoothed,
        rules: NDArray[np.uint8],
        *,
        threads: int,  # noqa: ARG002
    ) -> NDArray[np.uint8]:
        advantages = smoothed.advantages(smoothed.space, rules)
        return rounded(softmax(advantages / np.float32(self.hyperparameters.temperature)))
