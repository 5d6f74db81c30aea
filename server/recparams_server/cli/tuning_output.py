"""A tuning in words: rows of a table, one sentence, and the settings to write."""

from collections.abc import Iterator

from recparams.v1 import tuning_pb2 as pb

VERDICTS = {
    pb.TUNING_VERDICT_PRESENT: "present",
    pb.TUNING_VERDICT_BETTER: "better",
    pb.TUNING_VERDICT_WORSE: "worse",
    pb.TUNING_VERDICT_UNDECIDED: "cannot tell",
    pb.TUNING_VERDICT_ALIKE: "the same",
    pb.TUNING_VERDICT_REFUSED: "too rare",
}
_LEAST_P = 0.001


def table_rows(found: pb.Tuning) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields name, value, difference, interval and verdict of each configuration."""
    for place, one in enumerate(found.configurations):
        differs = one.HasField("difference") and place > 0
        yield (
            f"{one.name} *" if place == found.chosen else one.name,
            f"{one.value:.3f}" if one.HasField("value") else "-",
            f"{one.difference:+.3f}" if differs else "-",
            f"{one.low:+.3f} to {one.high:+.3f}" if differs else "-",
            VERDICTS[one.verdict],
        )


def tuning_notes(found: pb.Tuning) -> list[str]:
    """Returns what the table needs to be understood, a sentence each."""
    together = f"{100 * found.confidence:g} %"
    notes = [f"* to use. All intervals hold together, with {together} confidence."]
    if any(one.verdict == pb.TUNING_VERDICT_REFUSED for one in found.configurations):
        notes.append(
            "Too rare: what only one of the two would do was given to too few people to compare."
            if _comparable(found)
            else "Too rare: the interactions do not hold enough of what the settings would do."
        )
    if any("exploration" in one.settings for one in found.configurations):
        notes.append(
            "Exploration is shown for what it costs, and never chosen: what later versions learn "
            "from it is not in the log."
        )
    return notes


def tuning_sentence(found: pb.Tuning) -> str:
    """Returns which configuration to use and how sure that is."""
    others = found.configurations[1:]
    confidence = f"{100 * found.confidence:g} %"
    if found.outcome == pb.TUNING_OUTCOME_BETTER:
        one = found.configurations[found.chosen]
        p = f"< {_LEAST_P:g}" if one.p_value < _LEAST_P else f"= {one.p_value:.3f}"
        return (
            f"Use {one.name}: worth {one.difference:+.3f} reward a recommendation against the "
            f"present settings ({one.low:+.3f} to {one.high:+.3f} with {confidence} confidence, "
            f"corrected for having looked at {len(others)}; p {p})."
        )
    if found.outcome == pb.TUNING_OUTCOME_BEST:
        return (
            f"Keep the present settings: of {len(others)} other configurations each does the same "
            f"or is shown to be worse, with {confidence} confidence for all together."
        )
    if not _comparable(found):
        reason = found.configurations[0].reason if found.configurations else "there are none"
        return (
            "Cannot tell, so keep the present settings: of what they would serve the interactions "
            f"do not hold enough ({reason}). Exploration makes a log that can tell: "
            "RECPARAMS_EXPLORATION=0.05, or schedule."
        )
    best = max(
        (one for one in others if one.HasField("difference") and "exploration" not in one.settings),
        key=lambda one: one.difference,
        default=None,
    )
    sentence = (
        f"Cannot tell, so keep the present settings: none of {len(others)} other configurations is "
        f"shown to be better, with {confidence} confidence for all together"
    )
    if best is None or best.difference <= 0:
        return f"{sentence}."
    return (
        f"{sentence}; the best-looking, {best.name}, is at {best.difference:+.3f} "
        f"({best.low:+.3f} to {best.high:+.3f})."
    )


def settings_lines(found: pb.Tuning) -> list[str]:
    """Returns the settings to write, as RECPARAMS_NAME=value; none to keep the present ones."""
    if not found.configurations:
        return []
    changes = found.configurations[found.chosen].settings
    return [f"RECPARAMS_{name.upper()}={changes[name]}" for name in sorted(changes)]


def _comparable(found: pb.Tuning) -> bool:
    """Returns True if the present settings could be valued."""
    return bool(found.configurations) and not found.configurations[0].reason
