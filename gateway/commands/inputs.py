"""Values that a command takes as JSON: `--input` and `--input-file`."""

import json
import sys
from pathlib import Path
from typing import NoReturn

import typer


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
