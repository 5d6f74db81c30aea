"""How much a policy explores when it is served, and by what."""

from dataclasses import dataclass

from recparams_rl.arms import RULES_VERSION

FLOOR = 0.02
"""Probability of a uniformly random action beside draws: so rare is what no draw would do, and yet
every action's propensity is above 0, without which no log says what it is worth."""

OF_RULES = 0.05
"""The same where nothing is learned yet, and there are no draws."""


@dataclass(frozen=True)
class Exploration:
    """Exploration of all that is served.

    Attributes:
        epsilon: probability of a uniformly random action, 0 to 1; None: each policy's own.
        by_draws: True if policies that have draws explore by them too (recparams_rl/draws.py).
    """

    epsilon: float | None
    by_draws: bool = False

    def beside(self, version: int) -> "Exploration":
        """Returns the exploration while a version is active or being rolled out.

        Where that is the rules alone, random actions stand in for draws.
        """
        if self.by_draws and version == RULES_VERSION:
            return Exploration(OF_RULES)
        return self


OFF = Exploration(0.0)
SCHEDULE = Exploration(None)
POSTERIOR = Exploration(FLOOR, by_draws=True)
