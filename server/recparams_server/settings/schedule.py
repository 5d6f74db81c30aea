"""The schedule of training: instants of a cron expression or of an interval."""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_INTERVAL = re.compile(r"(\d{1,5})\s*([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Cron:
    """The instants of a cron expression in a time zone.

    Where clocks change it is as with Debian's cron. Fixed hours and minutes have one instant each:
    the first one in an hour that is repeated, and the end of an hour that is left out. Where either
    begins with *, or seconds are given, every instant counts whose time on the clock matches.
    """

    expression: str
    zone: tzinfo

    def latest(self, now: datetime) -> datetime:
        """Returns the last instant up to now, in UTC."""
        return self._nearest(now.astimezone(UTC).replace(microsecond=0), -_SECOND)

    def following(self, now: datetime) -> datetime:
        """Returns the first instant after now, in UTC."""
        return self._nearest(now.astimezone(UTC).replace(microsecond=0) + _SECOND, _SECOND)

    def _nearest(self, start: datetime, step: timedelta) -> datetime:
        """Returns the instant nearest to a whole second, or itself, on the side of the step."""
        fields = self.expression.split()
        if len(fields) == 5 and not any(field.startswith("*") for field in fields[:2]):
            return self._nearest_of_fixed(start, step)
        while True:
            offset = self._offset(start)
            instant = next(self._clock_times(start + offset, step)) - offset
            change = self._change(start, instant, step)
            if change is None:
                return instant
            start = change

    def _nearest_of_fixed(self, start: datetime, step: timedelta) -> datetime:
        forward = step > timedelta()
        local = start.astimezone(self.zone)
        # In the second of two equal hours clocks have shown later times than they show.
        offset = local.utcoffset() if forward else local.replace(fold=0).utcoffset()
        instants = map(self._first, self._clock_times(start + (offset or timedelta()), step))
        return next(at for at in instants if (at >= start if forward else at <= start))

    def _clock_times(self, time: datetime, step: timedelta) -> Iterator[datetime]:
        """Returns the times that match from one on, labelled as UTC, which is never changed."""
        return CronSim(self.expression, time - step, reverse=step < timedelta())

    def _first(self, time: datetime) -> datetime:
        """Returns the first instant at which clocks show this time, or have left it out."""
        while True:
            instant = time.replace(tzinfo=self.zone).astimezone(UTC)
            if instant + self._offset(instant) == time:
                return instant
            time += timedelta(minutes=1)

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self.zone).utcoffset() or timedelta()

    def _change(self, start: datetime, end: datetime, step: timedelta) -> datetime | None:
        """Returns the first second from start to end whose offset is another one, or None."""
        offset = self._offset(start)
        while start != end:
            seconds = min((end - start) // step, 86400)
            if self._offset(start + seconds * step) != offset:
                return start + step * bisect_left(
                    range(seconds), True, key=lambda n: self._offset(start + n * step) != offset
                )
            start += seconds * step
        return None


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
    except StopIteration:
        raise ValueError(f"schedule {text!r} has no instant in the next 50 years") from None
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
