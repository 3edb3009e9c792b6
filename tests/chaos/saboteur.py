"""A gateway that lacks one of its safeguards: what the checks of a campaign have to catch.

`python -m tests.chaos.saboteur SABOTAGE serve ...` takes something out of the gateway's code, in
this process only, and then runs its command.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


def without_lease() -> None:
    """Have a process believe for ever that it holds its lease: it leaves nothing to others."""
    from callbacks.leases import Lease

    async def held(self: Lease) -> None:
        """Do not wait."""

    def do_not_lose(self: Lease) -> None:
        """Do not notice."""

    Lease.holds = lambda self: True  # type: ignore[method-assign]
    Lease.kept_since = lambda self, term: True  # type: ignore[method-assign]
    Lease.held = held  # type: ignore[method-assign]
    Lease._lose = do_not_lose  # type: ignore[method-assign]


def without_fence() -> None:
    """Have a process write for operations whoever owns them by now."""
    sys.meta_path.insert(
        0, _StandIn("handlers.store.fence", Path(__file__).with_name("no_fence.py"))
    )


class _StandIn(MetaPathFinder):
    """Loads a module from another file: statements are made with the fence when imported."""

    def __init__(self, name: str, file: Path) -> None:
        self._name = name
        self._file = file

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module is to be loaded from; None for every other module."""
        if fullname != self._name:
            return None
        return spec_from_file_location(fullname, self._file)


SABOTAGES: dict[str, Callable[[], None]] = {"lease": without_lease, "fence": without_fence}


def main() -> None:
    """Do what the first argument names, and run the command of the others."""
    SABOTAGES[sys.argv[1]]()
    from gateway.cli import main as run_command

    run_command(sys.argv[2:])


if __name__ == "__main__":
    main()
