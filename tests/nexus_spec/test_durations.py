from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus_spec import InvalidWireValue, format_duration, parse_duration

YEARS_100 = timedelta(days=36_500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0s", timedelta(0)),
        ("29990ms", timedelta(milliseconds=29_990)),
        ("1.5s", timedelta(milliseconds=1500)),
        ("0.1s", timedelta(milliseconds=100)),
        ("2m", timedelta(minutes=2)),
        ("0.0005ms", timedelta(0)),
        ("00012s", timedelta(seconds=12)),
        ("52560000m", YEARS_100),
    ],
)
def test_reads_number_and_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *["", "5", "s", "-1s", "+1s", "1 s", " 1s", "1s ", "1s\n", "1h", "1S", "1e3s", "1_0s"],
        *[".5s", "1.s", "1.5.5s", "1s2s", "\u0661s", "\uff11s", "inf s", "nans", "1us"],
        *["52560001m", "9" * 63 + "m", "9" * 5000 + "ms"],
    ],
)
def test_refuses_anything_else(text: str) -> None:
    with pytest.raises(InvalidWireValue, match="expected"):
        parse_duration(text)


@given(st.text() | st.from_regex(r"[0-9]{1,80}(\.[0-9]*)?(ms|s|m)", fullmatch=True))
@example("\ud800s")
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        duration = parse_duration(text)
    except InvalidWireValue:
        return
    assert timedelta(0) <= duration <= YEARS_100


@given(st.integers(0, YEARS_100 // timedelta(milliseconds=1)))
def test_whole_milliseconds_survive_a_round_trip(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert format_duration(duration) == f"{milliseconds}ms"
    assert parse_duration(format_duration(duration)) == duration


def test_positive_duration_is_never_written_as_no_limit() -> None:
    assert format_duration(timedelta(microseconds=1)) == "1ms"
    assert format_duration(timedelta(microseconds=2999)) == "2ms"
    assert format_duration(timedelta(0)) == "0ms"


@pytest.mark.parametrize("duration", [timedelta(microseconds=-1), timedelta.max, timedelta.min])
def test_unwritable_durations_are_refused(duration: timedelta) -> None:
    with pytest.raises(ValueError, match="0 to 100 years"):
        format_duration(duration)
