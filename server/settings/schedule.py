"""The schedule of training: instants of a cron expression or of an interval."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_INTERVAL = re.compile(r"(\d{1,5})\s*([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Cron:
    """The instants of a cron expression in a time zone."""

    expression: str
    zone: tzinfo

    def latest(self, now: datetime) -> datetime:
        """Returns the last instant up to now, in UTC."""
        # CronSim counts the second itself as passed where it is asked from within it.
        within = now.astimezone(self.zone).replace(microsecond=1)
        return next(CronSim(self.expression, within, reverse=True)).astimezone(UTC)

    def following(self, now: datetime) -> datetime:
        """Returns the first instant after now, in UTC."""
        return next(CronSim(self.expression, now.astimezone(self.zone))).astimezone(UTC)


@dataclass(frozen=True)
class Interval:
    """The instants at whole multiples of a number of seconds since 1970 in UTC."""

    seconds: int

    def latest(self, now: datetime) -> datetime:
        """Returns the last instant up to now, in UTC."""
        return datetime.fromtimestamp(now.timestamp() // self.seconds * self.seconds, UTC)

    def following(self, now: datetime) -> datetime:
        """Returns the first instant after now, in UTC."""
        return self.latest(now) + timedelta(seconds=self.seconds)


Schedule = Cron | Interval


def parse(text: str, time_zone: str) -> Schedule:
    """Returns the schedule of a setting.

    Args:
        text: a cron expression, or an interval such as 6h (units s, m, h and d).
        time_zone: IANA name of the time zone of a cron expression.

    Raises:
        ValueError: either cannot be read; the message says which and why.
    """
    found = _INTERVAL.fullmatch(text.strip())
    if found is not None and int(found[1]) > 0:
        return Interval(int(found[1]) * _UNITS[found[2]])
    schedule = Cron(text, _zone(time_zone))
    try:
        schedule.following(datetime.now(UTC))
    except CronSimError as failure:
        raise ValueError(
            f'schedule must be a cron expression such as "0 1 * * 1" or an interval such as "6h", '
            f"not {text!r} ({failure})"
        ) from None
    return schedule


def _zone(name: str) -> tzinfo:
    # Slim images have no time zone data.
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"schedule_time_zone {name!r} is no IANA time zone known here") from None
