# SPDX-License-Identifier: GPL-3.0-or-later
"""When a scheduled run begins: crontab(5) expressions and fixed intervals.

Pure: the moment to look from and the local time's offset from UTC come in as values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from .errors import InvalidInput
from .names import nearest

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _WEEKDAYS),
)
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_PART = re.compile(r"(\*|[0-9]{1,3}|[a-z]+)(?:-([0-9]{1,3}|[a-z]+))?(?:/([0-9]{1,3}))?")
_LONGEST_MONTH = dict.fromkeys((1, 3, 5, 7, 8, 10, 12), 31) | dict.fromkeys((4, 6, 9, 11), 30) | {2: 29}
_EPOCH = datetime(1970, 1, 1)
_LATEST = datetime(9900, 1, 1)
_DAYS = 366 * 9  # from a 29 February to the next one, past a year such as 2100 that has none


@dataclass(frozen=True)
class Cron:
    """The five fields, as the numbers that they allow; weekday 0 is Sunday.

    either_day: a day matches when the day of the month or the day of the week does. It is so when both fields are
    given; if one begins with "*", both must match (crontab(5)).
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def on(self, day: date) -> bool:
        """Tell whether the expression allows this day."""
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_week if self.either_day else by_date and by_week


def parse_cron(where: str, text: str) -> Cron:
    """Return the meaning of a crontab(5) expression: five fields, or a nickname such as @daily.

    Numbers, names, ranges, lists and steps are understood. Raises InvalidInput that names the field, also for an
    expression that no day can match.
    """
    words = text.lower().split()
    if len(words) == 1 and words[0].startswith("@"):
        if words[0] not in _NICKNAMES:
            hint = nearest(words[0], _NICKNAMES) or f"; known: {', '.join(_NICKNAMES)}"
            raise InvalidInput(f'{where}: unknown nickname "{words[0]}"{hint}')
        words = _NICKNAMES[words[0]].split()
    if len(words) != len(_FIELDS):
        raise InvalidInput(
            f'{where}: expected five fields (minute, hour, day, month, weekday), found {len(words)} in "{text}"'
        )
    minutes, hours, days, months, weekdays = (_numbers(where, word, *field) for word, field in zip(words, _FIELDS))
    either = not words[2].startswith("*") and not words[4].startswith("*")
    if not either and all(min(days) > _LONGEST_MONTH[month] for month in months):
        raise InvalidInput(f'{where}: no month of "{text}" has a day {min(days)}')
    return Cron(minutes, hours, days, months, frozenset(day % 7 for day in weekdays), either)


def _numbers(where: str, text: str, field: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match.group(1) == "*" and match.group(2)):
            raise InvalidInput(f'{where}: {field}: expected a number, a range, a list, a step or *, found "{text}"')
        begin, end, step = match.groups()

        def number(word: str) -> int:
            if word in names:
                return names.index(word) + (1 if low else 0)
            if not word.isdecimal() or not low <= int(word) <= high:
                known = f" or {names[0]} to {names[-1]}" if names else ""
                raise InvalidInput(f'{where}: {field}: expected {low} to {high}{known}, found "{word}"')
            return int(word)

        if step is not None and not int(step):
            raise InvalidInput(f'{where}: {field}: expected a step above 0, found "{part}"')
        first = low if begin == "*" else number(begin)
        last = number(end) if end else high if begin == "*" or step else first
        if first > last and last == 0 and field == "day of the week":
            last = 7  # fri-sun
        if first > last:
            raise InvalidInput(f'{where}: {field}: expected a range that goes up, found "{part}"')
        found.update(range(first, last + 1, int(step or 1)))
    return frozenset(found)


def in_utc(_moment: float) -> float:
    """Return the offset of UTC from itself."""
    return 0.0


def next_time(cron: str, every: float, after: float, offset: Callable[[float], float] = in_utc) -> float | None:
    """Return the first moment (seconds since 1970 UTC) after `after` at which a run begins; None without a schedule.

    cron: a crontab(5) expression in local time. every: seconds; then `after` is when the last run began. offset: what
    local time is ahead of UTC at a moment, in seconds. A time that a clock change skips is taken right after the gap
    by its length; one that comes twice is taken once, unless the expression allows every hour.
    """
    if not cron:
        return after + every if every else None
    times = parse_cron("cron", cron)
    hourly = len(times.hours) == 24
    ahead = offset(after)
    wall: datetime | None = _EPOCH + timedelta(seconds=after // 60 * 60 + ahead)
    while wall is not None:
        wall = _next_match(times, wall)
        if wall is None:
            return None
        moment = (wall - _EPOCH).total_seconds() - ahead
        if not hourly or not _matches(times, moment, offset):
            moment = _moment(wall, offset)
        if moment > after:
            return moment
    return None


def _moment(wall: datetime, offset: Callable[[float], float]) -> float:
    """Return when local clocks show this time: the first time of two; in a gap, the time that it would have been."""
    local = (wall - _EPOCH).total_seconds()
    before, later = offset(local - 86400), offset(local + 86400)
    first, second = local - before, local - later
    return second if offset(first) != before and offset(second) == later else first


def _matches(times: Cron, moment: float, offset: Callable[[float], float]) -> bool:
    wall = _EPOCH + timedelta(seconds=moment + offset(moment))
    return wall.minute in times.minutes and wall.hour in times.hours and times.on(wall.date())


def _next_match(times: Cron, wall: datetime) -> datetime | None:
    """Return the first matching minute after wall, or None if there is none in nine years."""
    wall = wall.replace(second=0, microsecond=0) + timedelta(minutes=1)
    day, minute_of_day = wall.replace(hour=0, minute=0), wall.hour * 60 + wall.minute
    for _number in range(_DAYS):
        if day > _LATEST:
            return None
        if times.on(day.date()):
            for hour in sorted(times.hours):
                for minute in sorted(times.minutes):
                    if hour * 60 + minute >= minute_of_day:
                        return day.replace(hour=hour, minute=minute)
        day, minute_of_day = day + timedelta(days=1), 0
    return None
