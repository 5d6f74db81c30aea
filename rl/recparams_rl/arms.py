"""Arms: who is served which policy while a version is rolled out.

People are put into arms by a hash of their id, so that everybody stays where they are, every
replica agrees, and whoever is in at 10 % is in at 50 %. The salt is drawn anew for each rollout:
successive rollouts do not try everything on the same people. Those who are held back are chosen by
a salt of their own that never changes: they are served the rules through all rollouts, so that what
learning is worth can be told at any time.
"""

from dataclasses import dataclass
from hashlib import sha256

RL, PREVIOUS, RULE_BASED = "rl", "previous", "rule_based"
ARMS = (RL, PREVIOUS, RULE_BASED)
RULES_VERSION = 0
"""The version number that stands for the hand-written rules."""
HOLDBACK_SALT = "holdback"
"""The salt that places the people who are held back; it is the same for all time."""


@dataclass(frozen=True)
class Split:
    """Division of the people into arms.

    Args:
        percent: share with the new version, 0 to 100, of those who are not held back.
        rule_based_percent: share of them kept on the rules, 0 to 100; the rest have the previous
            version.
        salt: what makes this division differ from others.
        holdback_percent: share of all people that is held back: served the rules, 0 to 100.

    Raises:
        ValueError: where a share is out of range or they exceed 100 together.
    """

    percent: float = 100.0
    rule_based_percent: float = 0.0
    salt: str = ""
    holdback_percent: float = 0.0

    def __post_init__(self) -> None:
        if not (
            self.percent >= 0 <= self.rule_based_percent
            and self.percent + self.rule_based_percent <= 100
            and 0 <= self.holdback_percent <= 100
        ):
            raise ValueError("shares must be 0 or more, and 100 at most together")

    def shares(self) -> dict[str, float]:
        """Returns the share of each arm, 0 to 1; they sum to 1."""
        # In percent, where sums of round numbers are exact: no arm of 1e-17 is left over.
        rest = 100.0 - (self.percent + self.rule_based_percent)
        divided = (100.0 - self.holdback_percent) / 100
        return {
            RL: divided * self.percent / 100,
            PREVIOUS: divided * rest / 100,
            RULE_BASED: (self.holdback_percent + divided * self.rule_based_percent) / 100,
        }

    def arm(self, user_id: str) -> str:
        """Returns a person's arm: the version takes the bottom of the range, the rules the top.

        Who is held back has the rules, wherever they stand in that range.
        """
        if self.holdback_percent > 0.0 and (
            100.0 * position_of(HOLDBACK_SALT, user_id) < self.holdback_percent
        ):
            return RULE_BASED
        if self.percent == 100.0:
            return RL
        position = 100.0 * position_of(self.salt, user_id)
        if position < self.percent:
            return RL
        return RULE_BASED if position >= 100.0 - self.rule_based_percent else PREVIOUS


def position_of(salt: str, user_id: str) -> float:
    """Returns a person's position in [0, 1): 53 bits of SHA-256 of ``salt:user_id`` (UTF-8)."""
    digest = sha256(f"{salt}:{user_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


@dataclass(frozen=True)
class Activation:
    """One row of the record of what is served to whom.

    Attributes:
        id: 0 before any activation.
        version: what the RL arm is served; `RULES_VERSION` is the rules.
        rollback_to: the activation to go back to; None is the rules.
        split: how people are divided.
        baseline: what the previous arm is served.
        experiment_id: the first activation of the comparison under way; None without one.
    """

    id: int
    version: int
    rollback_to: int | None
    split: Split
    baseline: int
    experiment_id: int | None

    @property
    def is_ramp(self) -> bool:
        """True while some people are still served the version before."""
        return self.split.percent + self.split.rule_based_percent < 100

    @property
    def settled(self) -> int:
        """The version that people outside a ramp are served, and everybody without one."""
        return self.baseline if self.is_ramp else self.version

    def arms(self) -> dict[str, "ArmPlan"]:
        """Returns every arm with people in it; all who get the rules are in one arm."""
        versions = {RL: self.version, PREVIOUS: self.baseline, RULE_BASED: RULES_VERSION}
        arms: dict[str, ArmPlan] = {}
        for wanted, share in self.split.shares().items():
            version = versions[wanted]
            name = RULE_BASED if version == RULES_VERSION else wanted
            before = arms[name].share if name in arms else 0.0
            if share > 0.0:
                arms[name] = ArmPlan(version, before + share)
        return arms


@dataclass(frozen=True)
class ArmPlan:
    """The version an arm is served, and its share of the people, 0 to 1."""

    version: int
    share: float


NEVER_ACTIVATED = Activation(0, RULES_VERSION, None, Split(), RULES_VERSION, None)
