"""Times and durations that a command takes: `2026-11-22T15:04:18Z`, `2h`."""

import re
from datetime import UTC, datetime, timedelta

import typer

from nexus_spec import InvalidWireValue, format_rfc3339, parse_rfc3339

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_duration(text: str, option: str) -> timedelta:
    """Return a duration: a number and `s`, `m`, `h` or `d`.

    Raises:
        typer.BadParameter: It is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no duration: say for example 90s, 30m, 2h or 3d", param_hint=option
        )
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


def read_moment(text: str, option: str, now: datetime | None = None) -> str:
    """Return a time by RFC 3339, also of one that is given as how long ago it was.

    Args:
        text: as it was given.
        option: the option's name.
        now: what a duration counts back from.

    Raises:
        typer.BadParameter: It is neither.
    """
    try:
        if _DURATION.fullmatch(text):
            return format_rfc3339((now or datetime.now(UTC)) - read_duration(text, option))
        return format_rfc3339(parse_rfc3339(text))
    except (InvalidWireValue, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is no time: say for example 2026-11-22T15:04:18Z, or 2h for two hours ago",
            param_hint=option,
        ) from error
