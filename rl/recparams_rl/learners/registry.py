"""Registry of the algorithms and of the kinds of policy, by name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from recparams_rl.learners.actor_critic import ActorCritic
from recparams_rl.learners.base import Learner
from recparams_rl.learners.boltzmann import Boltzmann
from recparams_rl.learners.double_q_learning import DoubleQLearning
from recparams_rl.learners.dqn import Dqn
from recparams_rl.learners.expected_sarsa import ExpectedSarsa
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.lin_ts import LinearThompsonSampling
from recparams_rl.learners.lin_ucb import LinUcb
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.learners.ucb import Ucb
from recparams_rl.policy import Policy

DEFAULT_ALGORITHM = QLearning.algorithm

LEARNERS: dict[str, type[Learner]] = {
    learner.algorithm: learner
    for learner in (
        QLearning,
        DoubleQLearning,
        ExpectedSarsa,
        Boltzmann,
        Ucb,
        LinUcb,
        LinearThompsonSampling,
        Dqn,
        ActorCritic,
    )
}


def settings_of(algorithm: str, values: Mapping[str, Any]) -> Hyperparameters:
    """Returns the hyperparameters of an algorithm; those not named in `values` are the defaults.

    Raises:
        ValueError: if there is no such algorithm or no such name, or a value is out of range.
    """
    learner = LEARNERS.get(algorithm)
    if learner is None:
        raise ValueError(f"algorithm must be one of {', '.join(LEARNERS)}, not {algorithm!r}")
    names = [field.name for field in fields(learner.Settings)]
    for name in values:
        if name not in names:
            own = ", ".join(parameters_of(algorithm)) or "none"
            raise ValueError(f"{name} is no parameter of {algorithm}, which has {own}")
    return learner.Settings(**values)


def parameters_of(algorithm: str) -> dict[str, Any]:
    """Returns an algorithm's hyperparameters besides the common ones, by name, with defaults."""
    common = {field.name for field in fields(Hyperparameters)}
    own = fields(LEARNERS[algorithm].Settings)
    return {field.name: field.default for field in own if field.name not in common}


POLICIES: dict[str, type[Policy]] = {
    policy.kind: policy for learner in LEARNERS.values() for policy in learner.policy_types
}
