from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_spec import (
    InvalidWireValue,
    format_http_date,
    format_rfc3339,
    parse_http_date,
    parse_rfc3339,
)

MOMENT = datetime(2026, 11, 22, 15, 4, 18, tzinfo=UTC)
AWARE = st.datetimes(
    min_value=datetime(2, 1, 1),  # noqa: DTZ001 - the zone is drawn beside it
    max_value=datetime(9998, 12, 31),  # noqa: DTZ001 - likewise
    timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
)


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 22 Nov 2026 15:04:18 GMT",
        "22 Nov 2026 15:04:18 GMT",
        "Mon, 22 Nov 2026 15:04:18 UTC",
        "Sun, 22 Nov 2026 17:04:18 +0200",
        "Sun, 22 Nov 2026 14:34:18 -0030",
        "Sunday, 22-Nov-26 15:04:18 GMT",
        "Sun Nov 22 15:04:18 2026",
    ],
)
def test_reads_the_formats_of_http_and_of_mail(text: str) -> None:
    assert parse_http_date(text) == MOMENT
    assert parse_http_date(text).tzinfo is UTC


def test_two_digit_years_turn_at_69() -> None:
    assert parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT").year == 1994
    assert parse_http_date("Sunday, 06-Nov-68 08:49:37 GMT").year == 2068


def test_leap_second_reads_as_the_second_before() -> None:
    assert parse_http_date("Sat, 31 Dec 2016 23:59:60 GMT").second == 59
    assert parse_rfc3339("2016-12-31T23:59:60Z").second == 59


@pytest.mark.parametrize(
    "text",
    [
        *["", "now", "2026-11-22T15:04:18Z", "Sun, 22 Nov 2026 15:04:18", "GMT"],
        *["Sun, 31 Nov 2026 15:04:18 GMT", "Sun, 22 Nov 2026 24:04:18 GMT"],
        *["Sun, 22 Nov 2026 15:04:61 GMT", "Sun, 22 Nov 0000 15:04:18 GMT"],
        *["Mon, 01 Jan 0001 00:00:00 +0100", "Fri, 31 Dec 9999 23:59:59 -0001"],
        *["Sun, 22 Nov 2026 15:04:18 +2400", "Sun, 22 Nov 2026 15:04:18 +0060"],
        *["Sun, 22 Nov 2026 15:04:18 GMT\n", " Sun, 22 Nov 2026 15:04:18 GMT"],
        *["Sun, 2\u0662 Nov 2026 15:04:18 GMT", "Sun Nov  0 15:04:18 2026"],
    ],
)
def test_refuses_what_is_no_http_date(text: str) -> None:
    with pytest.raises(InvalidWireValue, match="expected for example Sun, 22 Nov 2026"):
        parse_http_date(text)


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2026-11-22T15:04:18Z", 0),
        ("2026-11-22t15:04:18z", 0),
        ("2026-11-22T15:04:18.4Z", 400_000),
        ("2026-11-22T15:04:18.402Z", 402_000),
        ("2026-11-22T15:04:18.402390990Z", 402_390),
        ("2026-11-22T17:04:18.999999999+02:00", 999_999),
        ("2026-11-22T14:34:18-00:30", 0),
    ],
)
def test_reads_rfc3339_with_zero_to_nine_fraction_digits(text: str, microsecond: int) -> None:
    assert parse_rfc3339(text) == MOMENT.replace(microsecond=microsecond)


@pytest.mark.parametrize(
    "text",
    [
        *["", "2026-11-22", "2026-11-22 15:04:18Z", "2026-11-22T15:04:18", "20261122T150418Z"],
        *["2026-11-22T15:04:18.Z", "2026-11-22T15:04:18.0123456789Z", "2026-11-22T15:04Z"],
        *["2026-02-30T15:04:18Z", "2026-11-22T24:00:00Z", "2026-11-22T15:04:61Z"],
        *["0000-11-22T15:04:18Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"],
        *["2026-11-22T15:04:18+24:00", "2026-11-22T15:04:18+0000", "2026-11-22T15:04:18Z\n"],
        *["2026-11-22T15:04:1\u0668Z", "2026-W47-7T15:04:18Z"],
    ],
)
def test_refuses_what_is_no_rfc3339_timestamp(text: str) -> None:
    with pytest.raises(InvalidWireValue, match="expected for example 2026-11-22T"):
        parse_rfc3339(text)


def test_writes_gmt_and_milliseconds() -> None:
    moment = MOMENT.replace(microsecond=402_999).astimezone(timezone(timedelta(hours=2)))
    assert format_http_date(moment) == "Sun, 22 Nov 2026 15:04:18 GMT"
    assert format_rfc3339(moment) == "2026-11-22T15:04:18.402Z"


@given(AWARE)
def test_dates_survive_a_round_trip_up_to_their_resolution(moment: datetime) -> None:
    milliseconds = moment.microsecond // 1000 * 1000
    assert parse_http_date(format_http_date(moment)) == moment.replace(microsecond=0)
    assert parse_rfc3339(format_rfc3339(moment)) == moment.replace(microsecond=milliseconds)


@given(
    st.text()
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{0,12})?([Zz]|[+-][0-9:]{5})")
    | st.from_regex(r"Sun, [0-9]{2} Nov [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} (GMT|[+-][0-9]{4})")
)
def test_any_text_is_a_moment_in_utc_or_refused(text: str) -> None:
    for parse in (parse_http_date, parse_rfc3339):
        try:
            moment = parse(text)
        except InvalidWireValue:
            continue
        assert moment.utcoffset() == timedelta(0)


def test_naive_datetimes_are_not_written() -> None:
    naive = MOMENT.replace(tzinfo=None)
    with pytest.raises(ValueError, match="aware"):
        format_http_date(naive)
    with pytest.raises(ValueError, match="aware"):
        format_rfc3339(naive)
