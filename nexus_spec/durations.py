"""Durations as `Request-Timeout` and `Operation-Timeout` carry them: `1.5s`, `29990ms`, `2m`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from nexus_spec.errors import InvalidWireValue

# Longer texts cannot be durations anyone means, and int() refuses 4301 digits with another error.
_MAX_CHARACTERS = 64
# A bound that keeps `now + duration` inside what a datetime can hold.
_MAX_DURATION = timedelta(days=36_500)

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)")
_MICROSECONDS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000}
_MAX_MICROSECONDS = _MAX_DURATION // timedelta(microseconds=1)


def parse_duration(text: str) -> timedelta:
    """Read a number with the unit `ms`, `s` or `m`; fractions below a microsecond are cut off.

    Zero is a valid value: in the headers that carry durations it means "no limit".

    Raises:
        InvalidWireValue: anything else (signs, spaces, other units), or more than 100 years.

    Spec: SPEC.md#request-timeout
    """
    match = _DURATION.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if match is None:
        raise InvalidWireValue(
            f"invalid duration {text[:20]!r}: expected a number and a unit of ms, s or m, "
            "for example 500ms, 1.5s or 2m"
        )
    number, unit = match.groups()
    microseconds = int(Decimal(number) * _MICROSECONDS[unit])
    if microseconds > _MAX_MICROSECONDS:
        raise InvalidWireValue(f"invalid duration {text[:20]!r}: expected at most 100 years")
    return timedelta(microseconds=microseconds)


def format_duration(d: timedelta) -> str:
    """Write a duration in whole milliseconds, the form that every reader knows.

    Fractions of a millisecond are cut off, except that a positive duration is never written as
    zero, which would mean "no limit".

    Raises:
        ValueError: the duration is negative or longer than 100 years.

    Spec: SPEC.md#request-timeout
    """
    if not timedelta(0) <= d <= _MAX_DURATION:
        raise ValueError(f"a duration on the wire is 0 to 100 years, not {d}")
    milliseconds = d // timedelta(milliseconds=1)
    return f"{max(milliseconds, 1) if d else 0}ms"
