"""Types of options that need more than click knows."""

from datetime import UTC, datetime

import click


def int32(text: str | int) -> int:
    """A whole number that fits the contract's field. Raises click.BadParameter otherwise."""
    return _whole(text, 32)


def int64(text: str | int) -> int:
    """A whole number that fits the contract's field. Raises click.BadParameter otherwise."""
    return _whole(text, 64)


def _whole(text: str | int, bits: int) -> int:
    """Only what a message cannot hold is refused here: which numbers make sense the server says."""
    try:
        number = int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number.") from None
    if not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise click.BadParameter(f"{number} is too large.")
    return number


def moment(text: str) -> datetime:
    """An ISO 8601 date or time, in UTC unless it says otherwise. Raises click.BadParameter."""
    try:
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=given.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time as in 2026-03-01T12:00:00Z.") from None
