"""What the delivery of versions costs and what it keeps out, against its targets."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_delivery import Weeks
from benchmarks.learning_harm import KINDS, LEAST_HARM, Harm
from benchmarks.learning_report import Target, text
from benchmarks.report import Table

MOST_LOST = 0.01
"""Most reward of an interaction that the delivery may lose to always promoting."""

ALL, FREE = 0, 1
"""Columns of `Weeks`: all people, and those who are not held back."""


@dataclass(frozen=True)
class Delivered:
    """What was found, each by seed, and in `harms` of all seeds.

    Attributes:
        promoted: with every version promoted at once.
        staged: with the service's own rules.
        harms: what became of versions that are worse.
    """

    promoted: Sequence[Weeks]
    staged: Sequence[Weeks]
    harms: Sequence[Harm]

    def means(self, of: Sequence[Weeks], people: int) -> NDArray[np.float64]:
        """Returns the mean reward of an interaction by seed, (seeds,); `people` is a column."""
        return np.array([weeks.mean()[people] for weeks in of])

    def lost(self, people: int) -> NDArray[np.float64]:
        """Returns what the rules lose to always promoting, in reward, by seed, (seeds,)."""
        return self.means(self.promoted, people) - self.means(self.staged, people)

    def passed(self) -> list[Harm]:
        """Returns the worse versions that the gates let through."""
        return [one for one in self.harms if not one.refused]

    def targets(self) -> list[Target]:
        """Returns the targets and whether they are met."""
        weeks, lost = len(self.staged[0].reward), self.lost(ALL)
        beyond = sum(one.got_beyond for one in self.passed())
        return [
            Target(
                f"delivery: reward lost to always promoting over {weeks} weeks",
                text(lost, sign=True),
                f"<= +{MOST_LOST:g}",
                bool(lost.mean() <= MOST_LOST),
            ),
            Target(
                f"delivery: versions worse by more than {LEAST_HARM:g} beyond their first step, of "
                f"{len(self.harms)}",
                str(beyond),
                "<= 0",
                beyond == 0,
            ),
        ]

    def reward_table(self) -> Table:
        """Returns the mean rewards, and what the rules lose, by people."""
        rows = [
            (
                name,
                text(self.means(self.promoted, people)),
                text(self.means(self.staged, people)),
                text(-self.lost(people), sign=True),
            )
            for name, people in (("all", ALL), ("not held back", FREE))
        ]
        return Table(("people", "promoted at once", "by the rules", "difference"), rows)

    def weekly_table(self) -> Table:
        """Returns the mean reward by week and what the rules lose of the whole in it."""
        promoted, staged = (
            np.array([weeks.by_week() for weeks in of]) for of in (self.promoted, self.staged)
        )
        shares = np.array(
            [w.interactions[:, ALL] / w.interactions.sum(axis=0)[ALL] for w in self.staged]
        )
        rows = [
            (
                str(week + 1),
                text(promoted[:, week]),
                text(staged[:, week]),
                text(staged[:, week] - promoted[:, week], sign=True),
                f"{((staged - promoted) * shares)[:, : week + 1].sum(axis=1).mean():+.4f}",
            )
            for week in range(promoted.shape[1])
        ]
        return Table(("week", "promoted at once", "by the rules", "difference", "so far"), rows)

    def fates(self) -> str:
        """Returns a sentence that says what became of the versions under the rules."""
        events = [event for weeks in self.staged for event in weeks.events]
        counts = Counter((one.what, one.percent) for one in events)
        trained = sum(len(weeks.reward) - 1 for weeks in self.staged)
        lags = [days for weeks in self.staged for days in days_to_all(weeks)]
        spent = f", {np.mean(lags):.1f} days after their training on average" if lags else ""
        return (
            f"Of {trained} versions, {counts['refused', 0.0]} were refused, "
            f"{counts['started', 10.0]} began at 10 % and {counts['started', 50.0]} at 50 %, "
            f"{counts['waiting', 0.0]} had to wait, {counts['taken back', 0.0]} were taken back, "
            f"and {len(lags)} reached everybody{spent}."
        )

    def harm_table(self) -> Table:
        """Returns what became of the worse versions, by kind."""
        rows = []
        for kind in KINDS:
            of_kind = [one for one in self.harms if one.kind == kind]
            if not of_kind:
                continue
            passed = [one for one in of_kind if not one.refused]
            worse = [one.worse for one in of_kind]
            back = [one for one in passed if one.fate == "taken back"]
            days = f"{np.mean([one.days for one in back]):.1f}" if back else ""
            people = f"{np.mean([one.people for one in back]):.0f}" if back else ""
            rows.append(
                (
                    kind,
                    str(len(of_kind)),
                    f"{min(worse):.2f} to {max(worse):.2f}",
                    str(len(of_kind) - len(passed)),
                    str(len(back)),
                    days,
                    people,
                    str(sum(one.fate == "held" for one in passed)),
                    str(sum(one.got_beyond for one in passed)),
                    str(sum(one.got_beyond for one in of_kind)),
                )
            )
        columns = (
            *("", "versions", "worse by", "refused", "taken back", "after days", "people", "held"),
            *("got beyond", "would have, without gates"),
        )
        return Table(columns, rows)


def days_to_all(weeks: Weeks) -> list[float]:
    """Returns the days from its training until a version was served to all, of those that were."""
    return [7.0 * (event.weeks - event.version) for event in weeks.events if event.percent == 100.0]
