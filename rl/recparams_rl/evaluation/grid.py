"""The grid of configurations that are compared with the present one on one's own log.

Not a product: each differs from the present configuration in one thing, its algorithm or the value
of one hyperparameter, so that there are few of them and each difference has a name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

from recparams_rl.exploration import OFF, Exploration
from recparams_rl.learners.deep import DeepHyperparameters
from recparams_rl.learners.double_q_learning import DoubleQLearning
from recparams_rl.learners.expected_sarsa import ExpectedSarsa
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.learners.registry import DEFAULT_ALGORITHM, LEARNERS, parameters_of, settings_of
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.smoothing import Smoothing

LEARNING_RATES = 0.03, 0.1, 0.3
DISCOUNTS = (0.95, 0.0), (0.5, 1.0), (0.95, 1.0)
"""Pairs of discount_factor and foresight, without which nothing that follows counts."""
CAUTIONS = 0.0, 0.25, 0.5, 1.0
SERVING_BINS = 5, 7, 9
OWN_PARAMETERS = {
    "boltzmann": ("temperature", 0.02),
    "lin_ucb": ("confidence", 0.0),
    "lin_ts": ("spread", 0.2),
}
"""A second value of the parameter that an algorithm has of its own, with less exploration."""

_COMMON = tuple(field.name for field in fields(Hyperparameters))
_CAUTIOUS = QLearning.algorithm, DoubleQLearning.algorithm, ExpectedSarsa.algorithm


@dataclass(frozen=True)
class Configuration:
    """A learner with its hyperparameters, and how what it learns is served.

    Attributes:
        algorithm: a name in `LEARNERS`.
        hyperparameters: of its own type.
        smoothing: with which policies are published.
        exploration: name of the setting: off, posterior, schedule or a number.
        explores: what the setting is now.
    """

    algorithm: str
    hyperparameters: Hyperparameters
    smoothing: Smoothing
    exploration: str = "off"
    explores: Exploration = OFF

    def changes(self, present: "Configuration") -> dict[str, str]:
        """Returns the settings, by name, that make this of the present configuration."""
        mine, theirs = self._settings(), present._settings()
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def name(self, present: "Configuration") -> str:
        """Returns what differs from the present configuration, for people."""
        changes = self.changes(present)
        # An algorithm and its own parameters are known by their values.
        bare = {name: changes.pop(name, "") for name in ("algorithm", "algorithm_parameters")}
        words = [value for value in bare.values() if value]
        words += [f"{name}={value}" for name, value in changes.items()]
        return ", ".join(words) or "present settings"

    def _settings(self) -> dict[str, str]:
        values = asdict(self.hyperparameters)
        own = parameters_of(self.algorithm)
        parameters = [f"{name}={values[name]:g}" for name in own if values[name] != own[name]]
        return {
            "algorithm": self.algorithm,
            "algorithm_parameters": ",".join(parameters),
            **{name: _text(values[name]) for name in _COMMON},
            **{name: _text(value) for name, value in asdict(self.smoothing).items()},
            "exploration": self.exploration,
        }


def _text(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else "" if value is None else str(value)


def grid(
    present: Configuration, explorations: Mapping[str, Exploration], *, deep: bool
) -> tuple[Configuration, ...]:
    """Returns the present configuration and its variations, each once.

    Earlier ones are preferred where the log cannot tell: the present one, then the defaults of this
    package, then other values of one hyperparameter, other algorithms, and other exploration.

    Args:
        present: the configuration that is in force.
        explorations: settings of exploration by name, and what each is now.
        deep: True if neural networks can be learned here.
    """
    found = dict.fromkeys((present, *_variations(present, explorations, deep=deep)))
    return tuple(found)


def _variations(
    present: Configuration, explorations: Mapping[str, Exploration], *, deep: bool
) -> Iterator[Configuration]:
    yield replace(
        present,
        algorithm=DEFAULT_ALGORITHM,
        hyperparameters=_kept(DEFAULT_ALGORITHM, Hyperparameters(), present),
        smoothing=Smoothing(),
    )
    yield from _of_table(present)
    for algorithm, learner in LEARNERS.items():
        if issubclass(learner.Settings, DeepHyperparameters) and not deep:
            continue
        own = _kept(algorithm, present.hyperparameters, present)
        yield replace(present, algorithm=algorithm, hyperparameters=own)
        if algorithm in OWN_PARAMETERS:
            name, value = OWN_PARAMETERS[algorithm]
            yield replace(
                present,
                algorithm=algorithm,
                hyperparameters=settings_of(algorithm, {**own.to_dict(), name: value}),
            )
    for name, explores in explorations.items():
        yield replace(present, exploration=name, explores=explores)


def _of_table(present: Configuration) -> Iterator[Configuration]:
    """Yields other values of what a table is learned with, and of how it is served."""
    learner, learned, smoothing = (
        LEARNERS[present.algorithm],
        present.hyperparameters,
        present.smoothing,
    )
    if not issubclass(learner, TabularLearner):
        return
    for rate in LEARNING_RATES:
        yield replace(present, hyperparameters=replace(learned, learning_rate=rate))
    if present.algorithm in _CAUTIOUS:
        for caution in CAUTIONS:
            yield replace(present, smoothing=replace(smoothing, caution=caution))
    for bins in SERVING_BINS:
        yield replace(present, smoothing=replace(smoothing, serving_bins=bins))
    for discount, foresight in DISCOUNTS:
        if foresight or smoothing.foresight:
            yield replace(
                present,
                hyperparameters=replace(learned, discount_factor=discount),
                smoothing=replace(smoothing, foresight=foresight),
            )


def _kept(algorithm: str, learned: Hyperparameters, present: Configuration) -> Hyperparameters:
    """Returns hyperparameters of an algorithm: its own defaults, and of the common ones some.

    Learning rate and discount are those of `learned`; what has nothing to do with learning, such
    as sessions and the schedule of exploration, is the present one's.
    """
    common = {name: getattr(present.hyperparameters, name) for name in _COMMON}
    common |= {name: getattr(learned, name) for name in ("learning_rate", "discount_factor")}
    return settings_of(algorithm, common)
