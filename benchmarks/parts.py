"""Parts of the benchmarks: measured alone or together, each with its place in RESULTS.md."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import versions
from benchmarks.servers import REPOSITORY, ServerNotStarted

RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURES = Path(__file__).with_name("pictures")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one part has found.

    Attributes:
        text: Its figures as Markdown.
        missed: What is not as required, in words.
        details: Every single measurement, for a closer look.
        pictures: SVG documents that the text refers to, by file name.
    """

    text: str
    missed: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part: its name, which is its module's and its place's in RESULTS.md, and how to measure."""

    name: str
    measure: Callable[[argparse.Namespace], Measured]
    add_options: Callable[[argparse.ArgumentParser], None]

    def main(self) -> int:
        """Measure this part alone."""
        return main([self], prog=f"python -m benchmarks.{self.name}")


def main(parts: Sequence[Part], *, prog: str) -> int:
    """Measure parts, print them, and say whether everything is as required.

    Returns:
        1 where something is missed, 2 where a server does not start.
    """
    options = _options(parts, prog)
    chosen = [part for part in parts if part.name in options.only]
    missed: list[str] = []
    details: dict[str, Any] = {"versions": versions()}
    for part in chosen:
        progress(part.name)
        try:
            measured = part.measure(options)
        except ServerNotStarted as error:
            print(f"error: {part.name}: {error}", file=sys.stderr)
            return 2
        print(f"{measured.text}\n", flush=True)
        missed += [f"{part.name}: {line}" for line in measured.missed]
        details[part.name] = measured.details
        if options.write_results:
            _write(part.name, measured)
    if options.json is not None:
        options.json.write_text(json.dumps(details, indent=2) + "\n")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def progress(text: str) -> None:
    """Say where the run is."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder that is gone afterwards, on the repository's own disk.

    /tmp may be memory, where an fsync costs nothing.
    """
    parent = REPOSITORY / "data"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as folder:
        yield Path(folder)


def described_versions(*more: str) -> str:
    """Return what was measured on, as a sentence."""
    return ", ".join([*(f"{name} {version}" for name, version in versions().items()), *more]) + "."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = line(["-" * width for width in widths])
    return "\n".join([line(header), rule, *map(line, rows)])


def replace_figures(document: str, name: str, text: str) -> str:
    """Return a document with the figures of a part replaced, and the rest as it was.

    Raises:
        ValueError: The document has no place for them.
    """
    begin = f"<!-- figures of {name}: rewritten by `--write-results` -->"
    end = f"<!-- end of the figures of {name} -->"
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"there is no place marked {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _write(name: str, measured: Measured) -> None:
    RESULTS.write_text(replace_figures(RESULTS.read_text(), name, measured.text))
    for file_name, picture in measured.pictures.items():
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / file_name).write_text(picture)


def _options(parts: Sequence[Part], prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=sys.modules["__main__"].__doc__)
    names = [part.name for part in parts]
    if len(parts) > 1:
        parser.add_argument(
            "--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
        )
    parser.add_argument("--quick", action="store_true", help="small and short: does it still work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement here")
    parser.add_argument(
        "--write-results", action="store_true", help="rewrite the figures in RESULTS.md"
    )
    for part in parts:
        part.add_options(parser)
    options = parser.parse_args()
    if len(parts) == 1:
        options.only = names
    return options
