"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET]...",
        help="MODULE:ATTRIBUTE, or a file: ./orders/services.py:services. The attribute is a "
        "service handler instance or a list of them.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with settings.", show_default=False)
]
Database = Annotated[
    str | None,
    typer.Option(help="sqlite:///PATH. [default: sqlite:///data/nexus.db]", show_default=False),
]
