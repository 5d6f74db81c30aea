"""Types of options that click does not have."""

from datetime import UTC, datetime

import click

from recparams.v1.evaluation_pb2 import BuiltinPolicy, Objectives, Policy

_BUILTIN = {
    "active": BuiltinPolicy.BUILTIN_POLICY_ACTIVE,
    "rule-based": BuiltinPolicy.BUILTIN_POLICY_RULE_BASED,
    "random": BuiltinPolicy.BUILTIN_POLICY_UNIFORM_RANDOM,
}
OBJECTIVES = [field.name for field in Objectives.DESCRIPTOR.fields]


def int32(text: str | int) -> int:
    """Returns a whole number that fits the contract's field. Raises click.BadParameter."""
    return _whole(text, 32)


def int64(text: str | int) -> int:
    """Returns a whole number that fits the contract's field. Raises click.BadParameter."""
    return _whole(text, 64)


def _whole(text: str | int, bits: int) -> int:
    """Returns a number that fits so many bits; whether it makes sense, the server decides."""
    try:
        number = int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number.") from None
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise click.BadParameter(f"{number} is too large.")
    return number


def moment(text: str) -> datetime:
    """Returns an ISO 8601 date or time, in UTC by default. Raises click.BadParameter."""
    try:
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=given.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time as in 2026-03-01T12:00:00Z.") from None


def percent(text: str) -> float:
    """Returns a number given with or without a percent sign. Raises click.BadParameter."""
    try:
        return float(text.rstrip(" %"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a percentage.") from None


def objective(text: str) -> tuple[str, float]:
    """Returns name and weight of an objective, as in novelty=0.3. Raises click.BadParameter."""
    name, equals, weight = text.partition("=")
    try:
        if not equals or name not in OBJECTIVES:
            raise ValueError
        return name, float(weight)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not NAME=WEIGHT with one of {', '.join(OBJECTIVES)}."
        ) from None


def parameter(text: str) -> tuple[str, float]:
    """Returns name and value, as in temperature=0.1. Raises click.BadParameter otherwise."""
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE.") from None


def policy(text: str) -> Policy:
    """Returns the message of a version's number or a name. Raises click.BadParameter otherwise."""
    if text in _BUILTIN:
        return Policy(builtin=_BUILTIN[text])
    if text.isascii() and text.isdigit():
        return Policy(version=_whole(text, 64))
    raise click.BadParameter(f"{text!r} is no version, active, rule-based or random.")
