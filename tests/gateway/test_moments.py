from datetime import UTC, datetime, timedelta

import pytest
import typer

from gateway.commands.moments import read_duration, read_moment

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("1.5m", timedelta(seconds=90)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("0s", timedelta(0)),
    ],
)
def test_a_duration(text: str, meant: timedelta) -> None:
    assert read_duration(text, "--patience") == meant


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 h", "1h30m", "1w", "1ms", "1e3s", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no duration: say for example 90s"):
        read_duration(text, "--patience")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2h", "2026-11-22T10:00:00.000Z"),
        ("1d", "2026-11-21T12:00:00.000Z"),
        ("2026-11-22T15:04:18+01:00", "2026-11-22T14:04:18.000Z"),
    ],
)
def test_a_moment(text: str, meant: str) -> None:
    assert read_moment(text, "--since", NOW) == meant


@pytest.mark.parametrize("text", ["", "now", "2026-11-22", "2026-11-22T15:04", "999999999d"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time: say for example 2026-11-22T"):
        read_moment(text, "--since", NOW)
