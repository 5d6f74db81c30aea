"""What a check finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        level: ok, warning (something is lost or at risk) or problem (something does not work).
        said: what it saw, in a sentence.
        mend: the command or setting that mends it; empty where nothing has to be.
    """

    check: str
    level: Level
    said: str
    mend: str = ""


def is_healthy(findings: Iterable[Finding], *, strict: bool = False) -> bool:
    """Returns True if there is no problem among the findings; with strict, no warning either."""
    bad = ("warning", "problem") if strict else ("problem",)
    return not any(finding.level in bad for finding in findings)
