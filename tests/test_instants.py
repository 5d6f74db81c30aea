"""The instants of a schedule, also where clocks are changed."""

import functools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_server.settings.schedule import parse


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "now", "latest", "following"),
    [
        ("0 1 * * 1", "UTC", "2026-03-04 12:00", "2026-03-02 01:00", "2026-03-09 01:00"),
        ("0 1 * * mon", "UTC", "2026-03-02 01:00", "2026-03-02 01:00", "2026-03-09 01:00"),
        ("0 1 * * 1", "UTC", "2026-03-02 01:00:00.5", "2026-03-02 01:00", "2026-03-09 01:00"),
        ("0 1 * * 1", "UTC", "2026-03-02 00:59:59.5", "2026-02-23 01:00", "2026-03-02 01:00"),
        # Summer time began on 2026-03-29 in Berlin: 01:00 there is 00:00 UTC, then 23:00.
        ("0 1 * * 1", "Europe/Berlin", "2026-03-28 12:00", "2026-03-23 00:00", "2026-03-29 23:00"),
        # Summer time ends on 2026-10-25: 02:30 in Berlin is 00:30 UTC, and 01:30 UTC again.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:05", "2026-10-25 00:30", "2026-10-26 01:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:30", "2026-10-25 00:30", "2026-10-26 01:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:29", "2026-10-24 00:30", "2026-10-25 00:30"),
        ("0 3 * * *", "Europe/Berlin", "2026-10-25 01:59", "2026-10-24 01:00", "2026-10-25 02:00"),
        ("30 * * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-25 00:30", "2026-10-25 01:30"),
        ("30 * * * *", "Europe/Berlin", "2026-10-25 01:30", "2026-10-25 01:30", "2026-10-25 02:30"),
        # And has begun on 2026-03-29: 02:30 is left out.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 00:59", "2026-03-28 01:30", "2026-03-29 01:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 01:00", "2026-03-29 01:00", "2026-03-30 00:30"),
        (
            "*/15 2 * * *",
            "Europe/Berlin",
            "2026-03-29 01:10",
            "2026-03-28 01:45",
            "2026-03-30 00:00",
        ),
        # By half an hour at Lord Howe, from 02:00 to 01:30.
        (
            "*/15 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04 15:00",
            "2026-04-04 15:00",
            "2026-04-04 15:15",
        ),
        ("6h", "Europe/Berlin", "2026-03-04 12:30", "2026-03-04 12:00", "2026-03-04 18:00"),
        ("6h", "UTC", "2026-03-04 12:00", "2026-03-04 12:00", "2026-03-04 18:00"),
        ("1 d", "UTC", "2026-03-04 12:00", "2026-03-04 00:00", "2026-03-05 00:00"),
        ("90s", "UTC", "2026-03-04 00:02", "2026-03-04 00:01:30", "2026-03-04 00:03"),
    ],
)
def test_instants(text: str, zone: str, now: str, latest: str, following: str) -> None:
    schedule = parse(text, zone)
    assert schedule.latest(at(now)) == at(latest)
    assert schedule.following(at(now)) == at(following)


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # at midnight
    "America/Sao_Paulo",  # at midnight, into the day before
    "Africa/Cairo",
    "Africa/Casablanca",  # four times a year
    "Antarctica/Troll",  # by two hours
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # once by a day
)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@functools.cache
def changes(zone: str) -> list[datetime]:
    """The hours in which the clocks of a zone are changed."""
    hours = [at("2005-01-01 00:00") + n * 12 * HOUR for n in range(25 * 730)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    halves = [hours[i] for i in range(1, len(hours)) if offsets[i] != offsets[i - 1]]
    return [half - n * HOUR for half in halves for n in range(13)] or hours[:1]


@st.composite
def zones_and_instants(draw: st.DrawFn) -> tuple[str, datetime]:
    zone = draw(st.sampled_from(ZONES))
    near = st.builds(
        lambda change, seconds: change + timedelta(seconds=seconds),
        st.sampled_from(changes(zone)),
        st.floats(-7200, 7200),
    )
    anywhere = st.datetimes(at("2005-01-01").replace(tzinfo=None), timezones=st.just(UTC))
    return zone, draw(near | anywhere.filter(lambda now: now.year < 2040))


def some(least: int, most: int) -> st.SearchStrategy[str]:
    return st.one_of(
        st.just("*"),
        st.sampled_from((2, 5, 15)).map("*/{}".format),
        st.lists(st.integers(least, most), min_size=1, max_size=3, unique=True).map(
            lambda chosen: ",".join(map(str, chosen))
        ),
    )


EXPRESSIONS = st.builds(
    "{} {} {} {} {}".format,
    some(0, 59),
    some(0, 23),
    *(
        st.just("*") | st.integers(least, most).map(str)
        for least, most in ((1, 28), (1, 12), (0, 6))
    ),
)
DAILY = st.builds("{} {} * * *".format, some(0, 59), some(0, 23))


@hypothesis.settings(max_examples=400, deadline=None)
@given(zones_and_instants(), EXPRESSIONS)
def test_the_following_instant_is_always_ahead(where: tuple[str, datetime], text: str) -> None:
    zone, now = where
    schedule = parse(text, zone)
    latest, following = schedule.latest(now), schedule.following(now)
    assert latest <= now < following
    assert latest.tzinfo is following.tzinfo is UTC
    # Nothing is between them, seen from either end.
    assert schedule.following(latest) == following == schedule.latest(following)
    assert schedule.latest(following - timedelta(seconds=1)) == latest


def chosen(field: str, least: int, most: int) -> set[int]:
    if field.startswith("*"):
        return set(range(least, most + 1)[:: int(field.partition("/")[2] or 1)])
    return set(map(int, field.split(",")))


def instants_by_definition(text: str, zone: str, first: datetime, last: datetime) -> list[datetime]:
    """Watches a clock minute by minute, as cron does."""
    minutes, hours = text.split()[:2]
    fixed = not (minutes.startswith("*") or hours.startswith("*"))
    wanted = {(hour, minute) for hour in chosen(hours, 0, 23) for minute in chosen(minutes, 0, 59)}
    instant = first.replace(second=0, microsecond=0) - 50 * HOUR
    furthest = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    found = []
    while (instant := instant + MINUTE) <= last:
        clock = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
        passed = [clock]
        if fixed:
            passed = [furthest + n * MINUTE for n in range(1, (clock - furthest) // MINUTE + 1)]
            furthest = max(furthest, clock)
        if first < instant and any((time.hour, time.minute) in wanted for time in passed):
            found.append(instant)
    return found


@hypothesis.settings(max_examples=60, deadline=None)
@given(zones_and_instants(), DAILY)
def test_instants_are_those_that_a_clock_shows(where: tuple[str, datetime], text: str) -> None:
    zone, now = where
    schedule = parse(text, zone)
    wanted = instants_by_definition(text, zone, now, now + 30 * HOUR)
    found = [schedule.following(now)]
    while len(found) <= len(wanted):
        found.append(schedule.following(found[-1]))
    assert found[:-1] == wanted
    assert found[-1] > now + 30 * HOUR


@hypothesis.settings(deadline=None)
@given(zones_and_instants(), st.integers(1, 99999), st.sampled_from("smhd"))
def test_an_interval_is_always_ahead(where: tuple[str, datetime], count: int, unit: str) -> None:
    schedule = parse(f"{count}{unit}", where[0])
    assert schedule.latest(where[1]) <= where[1] < schedule.following(where[1])
