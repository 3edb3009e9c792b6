"""Values that several commands take: JSON by `--input` and `--input-file`, and durations."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import typer

from nexus_spec import InvalidWireValue, parse_duration

_HOURS_OR_DAYS = re.compile(r"([0-9]{1,5})(h|d)")


def read_json_input(input_json: str | None, input_file: Path | None) -> bytes:
    """Return the JSON that was given by an option or in a file (`-`: standard input), or nothing.

    Raises:
        typer.BadParameter: Both were given, or what was given cannot be read or is no JSON.
    """
    if input_json is not None and input_file is not None:
        raise typer.BadParameter("give --input or --input-file, not both")
    option = "--input" if input_file is None else "--input-file"
    try:
        if input_file is None:
            data = (input_json or "").encode()
        elif str(input_file) == "-":
            data = sys.stdin.buffer.read()
        else:
            data = input_file.read_bytes()
        if input_json is not None or input_file is not None:
            json.loads(data.decode(), parse_constant=_refuse_constant)
    except OSError as error:
        raise typer.BadParameter(f"{input_file}: {error.strerror}", param_hint=option) from error
    except UnicodeError as error:
        raise typer.BadParameter("not text in UTF-8", param_hint=option) from error
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from error
    return data


def read_duration(text: str, option: str) -> timedelta:
    """Return a duration as people give it: as on the wire (ms, s or m), or whole hours or days.

    Raises:
        typer.BadParameter: It is none; the error names the option.
    """
    if (match := _HOURS_OR_DAYS.fullmatch(text)) is not None:
        count = int(match[1])
        return timedelta(hours=count) if match[2] == "h" else timedelta(days=count)
    try:
        return parse_duration(text)
    except InvalidWireValue:
        raise typer.BadParameter(
            f"invalid duration {text[:20]!r}: expected a number and a unit of ms, s, m, h or d",
            param_hint=option,
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
