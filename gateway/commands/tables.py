"""How commands print what the operators' API answers."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def wide_console() -> Console:
    """Return what tables are printed on."""
    # A pipe has no width of its own, and what reads it wants whole lines.
    return Console() if sys.stdout.isatty() else Console(width=240)


def print_table(whole: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table without lines.

    Args:
        whole: the first column, which is never cut short: a part of it is of no use to anybody.
        columns: the others.
        rows: their cells; None is an empty one.
    """
    cells = [[Text("" if cell is None else str(cell)) for cell in row] for row in rows]
    table = Table(box=None)
    table.add_column(whole, no_wrap=True, min_width=max((len(row[0]) for row in cells), default=0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in cells:
        table.add_row(*row)
    wide_console().print(table)


def print_values(document: Mapping[str, Any]) -> None:
    """Print what an object holds, a line each, without what it does not say."""
    console = wide_console()
    for name, value in document.items():
        if value is not None and value != "":
            console.print(f"[bold]{name}[/]: ", end="")
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            console.print(shown, markup=False, highlight=False, soft_wrap=True)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print some keys of objects as a table; nothing where there are none."""
    if not rows:
        return
    table = Table(*columns, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(Text("" if row[c] is None else str(row[c])) for c in columns))
    wide_console().print(table)


def short_moment(moment: str | None) -> str:
    """Return a time of the API's without its fraction."""
    return "" if moment is None else moment[:19].replace("T", " ")
