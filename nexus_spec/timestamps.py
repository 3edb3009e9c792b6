"""The two date formats of a completion: HTTP dates (start time) and RFC 3339 (close time)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

from nexus_spec.errors import InvalidWireValue

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBER = {name: number for number, name in enumerate(_MONTHS, start=1)}

_SHORT_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_CLOCK = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"

# RFC 9110 section 5.6.7: "A recipient that parses a timestamp value in an HTTP field MUST accept
# all three HTTP-date formats." The first one also takes the numeric zones of RFC 5322, to which
# the Nexus specification links.
_HTTP_DATES = (
    re.compile(
        f"(?:{_SHORT_DAY}, )?(?P<day>[0-9]{{1,2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} "
        "(?:GMT|UTC|UT|(?P<zone>[+-][0-9]{4}))"
    ),
    re.compile(
        f"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<short_year>[0-9]{{2}}) {_CLOCK} GMT"
    ),
    re.compile(f"{_SHORT_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})"),
)
_RFC3339 = re.compile(
    f"(?P<year>[0-9]{{4}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}})[Tt]{_CLOCK}"
    r"(?:\.(?P<fraction>[0-9]{1,9}))?(?:[Zz]|(?P<zone>[+-][0-9]{2}:[0-9]{2}))"
)


def parse_http_date(text: str) -> datetime:
    """Read an HTTP date, in any of its three formats, as an aware datetime in UTC.

    A weekday that does not match the date is ignored; a leap second reads as second 59.

    Raises:
        InvalidWireValue: the text is no HTTP date, or no day or time that exists.

    Spec: SPEC.md#callback-urls
    """
    for pattern in _HTTP_DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            try:
                return _moment(parts, year=_year(parts), month=_MONTH_NUMBER[parts["month"]])
            except (ValueError, OverflowError):
                break
    raise InvalidWireValue(
        f"invalid HTTP date {text[:40]!r}: expected for example Sun, 22 Nov 2026 15:04:18 GMT"
    )


def format_http_date(d: datetime) -> str:
    """Write an aware datetime as an HTTP date, which ends in `GMT`; fractions are cut off.

    Raises:
        ValueError: the datetime is naive.

    Spec: SPEC.md#callback-urls
    """
    return format_datetime(_in_utc(d), usegmt=True)


def parse_rfc3339(text: str) -> datetime:
    """Read an RFC 3339 timestamp with 0 to 9 fraction digits as an aware datetime in UTC.

    Digits beyond microseconds are cut off; a leap second reads as second 59.

    Raises:
        InvalidWireValue: the text is no such timestamp, or no day or time that exists.

    Spec: SPEC.md#callback-urls
    """
    if match := _RFC3339.fullmatch(text):
        parts = match.groupdict()
        try:
            return _moment(parts, year=int(parts["year"]), month=int(parts["month"]))
        except (ValueError, OverflowError):
            pass
    raise InvalidWireValue(
        f"invalid RFC 3339 timestamp {text[:40]!r}: expected for example 2026-11-22T15:04:19.402Z"
    )


def format_rfc3339(d: datetime) -> str:
    """Write an aware datetime as an RFC 3339 timestamp in UTC, with milliseconds and `Z`.

    Raises:
        ValueError: the datetime is naive.

    Spec: SPEC.md#callback-urls
    """
    return _in_utc(d).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _year(parts: dict[str, str | None]) -> int:
    if parts.get("short_year") is None:
        return int(parts["year"] or "")
    # The pivot of POSIX and of Go: 69 to 99 are 19xx. A sliding window would need a clock.
    short = int(parts["short_year"] or "")
    return short + (1900 if short >= 69 else 2000)


def _moment(parts: dict[str, str | None], *, year: int, month: int) -> datetime:
    moment = datetime(
        year,
        month,
        int(parts["day"] or ""),
        int(parts["hour"] or ""),
        int(parts["minute"] or ""),
        # datetime knows no second 60, which both formats allow.
        59 if parts["second"] == "60" else int(parts["second"] or ""),
        int((parts.get("fraction") or "")[:6].ljust(6, "0")),
        tzinfo=_zone(parts.get("zone")),
    )
    return moment.astimezone(UTC)


def _zone(text: str | None) -> timezone:
    if text is None:
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError("no such zone")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)


def _in_utc(d: datetime) -> datetime:
    if d.tzinfo is None:
        raise ValueError("a time on the wire needs a zone: use an aware datetime")
    return d.astimezone(UTC)
