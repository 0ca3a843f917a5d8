# SPDX-License-Identifier: GPL-3.0-or-later
"""Crontab expressions: the fields, the two rules for days, and clocks that change."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import FleetError, InvalidInput
from fleet_core.schedules import next_time, parse_cron

UTC = timezone.utc


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# 2026-01-01 is a Thursday, 2028 a leap year.
NEXT = [
    ("* * * * *", "2026-01-01 00:00", "2026-01-01 00:01"),
    ("* * * * *", "2026-01-01 00:00:59", "2026-01-01 00:01"),
    ("*/15 * * * *", "2026-01-01 00:15", "2026-01-01 00:30"),
    ("5-59/20 * * * *", "2026-01-01 00:46", "2026-01-01 01:05"),
    ("10/20 * * * *", "2026-01-01 00:11", "2026-01-01 00:30"),
    ("0 22 * * mon-fri", "2026-01-02 22:00", "2026-01-05 22:00"),
    ("0 22 * * 1-5", "2026-01-02 22:00", "2026-01-05 22:00"),
    ("30 4 1,15 * *", "2026-01-02 00:00", "2026-01-15 04:30"),
    ("0 0 * * 7", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("0 0 * * SUN", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("0 0 * * fri-sun", "2026-01-03 00:00", "2026-01-04 00:00"),
    ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
    ("0 0 29 feb *", "2097-01-01 00:00", "2104-02-29 00:00"),
    ("0 0 31 * *", "2026-01-31 00:00", "2026-03-31 00:00"),
    ("0 12 13 * fri", "2026-02-14 00:00", "2026-02-20 12:00"),  # the 13th or a Friday
    ("0 12 13 * fri", "2026-03-07 00:00", "2026-03-13 12:00"),
    ("0 12 */2 * fri", "2026-01-01 13:00", "2026-01-09 12:00"),  # an odd day that is a Friday
    ("0 0 1 1 *", "2026-12-31 23:59", "2027-01-01 00:00"),
    ("@daily", "2026-01-01 00:00", "2026-01-02 00:00"),
    ("@hourly", "2026-01-01 00:30", "2026-01-01 01:00"),
    ("@weekly", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("@monthly", "2026-01-01 00:00", "2026-02-01 00:00"),
    ("@yearly", "2026-01-01 00:00", "2027-01-01 00:00"),
    ("  0   5\t* * *  ", "2026-01-01 00:00", "2026-01-01 05:00"),
]


@pytest.mark.parametrize(("cron", "after", "expected"), NEXT)
def test_the_next_time_of_an_expression(cron: str, after: str, expected: str) -> None:
    assert next_time(cron, 0, at(after)) == at(expected)


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("* * * *", "cron: expected five fields (minute, hour, day, month, weekday), found 4"),
        ("* * * * * *", "found 6"),
        ("", "found 0"),
        ("60 * * * *", 'cron: minute: expected 0 to 59, found "60"'),
        ("* 24 * * *", 'cron: hour: expected 0 to 23, found "24"'),
        ("* * 0 * *", 'cron: day of the month: expected 1 to 31, found "0"'),
        ("* * * 13 *", 'cron: month: expected 1 to 12 or jan to dec, found "13"'),
        ("* * * * 8", 'cron: day of the week: expected 0 to 7 or sun to sat, found "8"'),
        ("* * * * monday", 'cron: day of the week: expected 0 to 7 or sun to sat, found "monday"'),
        ("*/0 * * * *", 'cron: minute: expected a step above 0, found "*/0"'),
        ("30-10 * * * *", 'cron: minute: expected a range that goes up, found "30-10"'),
        ("1,,2 * * * *", 'cron: minute: expected a number, a range, a list, a step or *, found "1,,2"'),
        ("*-5 * * * *", "cron: minute: expected a number, a range"),
        ("x; * * * *", "cron: minute: expected a number, a range"),
        ("0 0 30 2 *", 'cron: no month of "0 0 30 2 *" has a day 30'),
        ("0 0 31 4,6 *", "has a day 31"),
        ("@dayly", 'cron: unknown nickname "@dayly", did you mean "@daily"?'),
        ("@reboot", 'cron: unknown nickname "@reboot"; known: '),
    ],
)
def test_what_is_wrong_with_an_expression_is_named(cron: str, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_cron("cron", cron)
    assert message in str(error.value)


def test_an_interval_counts_from_the_last_beginning() -> None:
    assert next_time("", 90, 1000.5) == 1090.5
    assert next_time("", 0, 1000) is None


def offset(zone: str) -> object:
    place = ZoneInfo(zone)

    def ahead(moment: float) -> float:
        found = datetime.fromtimestamp(moment, place).utcoffset()
        assert found is not None
        return found.total_seconds()

    return ahead


# Berlin: 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00.
CHANGES = [
    ("30 2 * * *", "2026-03-28 12:00", "2026-03-29 01:30"),  # 03:30 in summer time, for there is no 02:30
    ("30 2 * * *", "2026-03-29 12:00", "2026-03-30 00:30"),
    ("30 2 * * *", "2026-10-24 12:00", "2026-10-25 00:30"),  # the first 02:30
    ("30 2 * * *", "2026-10-25 00:30", "2026-10-26 01:30"),  # not the second one
    ("0 * * * *", "2026-03-29 00:30", "2026-03-29 01:00"),
    ("*/30 * * * *", "2026-10-25 00:30", "2026-10-25 01:00"),  # every half an hour, in both hours
    ("0 9 * * *", "2026-03-28 12:00", "2026-03-29 07:00"),
    ("0 9 * * *", "2026-10-24 12:00", "2026-10-25 08:00"),
]


@pytest.mark.parametrize(("cron", "after", "expected"), CHANGES)
def test_clock_changes(cron: str, after: str, expected: str) -> None:
    found = next_time(cron, 0, at(after), offset("Europe/Berlin"))
    assert found is not None
    assert datetime.fromtimestamp(found, UTC).isoformat(" ", "minutes")[:16] == expected


PARTS = st.sampled_from(["*", "*/2", "1", "5,10", "0-3", "2-8/3", "mon", "jan", "31", "x", "60"])


@given(st.lists(PARTS, min_size=5, max_size=5).map(" ".join) | st.text(max_size=20), st.integers(0, 4_000_000_000))
def test_whatever_is_given_the_answer_is_later_or_an_error(cron: str, after: int) -> None:
    try:
        times = parse_cron("cron", cron)
    except FleetError:
        return
    found = next_time(cron, 0, after)
    assert found is not None
    assert found > after
    wall = datetime.fromtimestamp(found, UTC)
    assert wall.minute in times.minutes
    assert wall.hour in times.hours
    assert times.on(wall.date())
    earlier = wall - timedelta(minutes=1)
    between = [earlier - timedelta(minutes=step) for step in range(100)]
    for moment in between:
        if moment.timestamp() > after:
            assert not (moment.minute in times.minutes and moment.hour in times.hours and times.on(moment.date()))
