"""Loading TARGETs: `MODULE:ATTRIBUTE` or a file, `./orders/services.py:services`."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nexus_spec import NexusError

_OWN_PACKAGES = frozenset({"callbacks", "clients", "examples", "gateway", "handlers", "nexus_spec"})


class TargetNotLoaded(NexusError):
    """A TARGET cannot be loaded; the message says why and what to do."""


def load_target(target: str) -> list[Any]:
    """Return the service handler instances that a TARGET names.

    Raises:
        TargetNotLoaded: There is no such module, file or attribute, or importing it failed.
    """
    where, colon, attribute = target.rpartition(":")
    if not colon or not where or not attribute:
        raise TargetNotLoaded(
            f"{target!r} is not MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE, such as my_services:services"
        )
    is_file = where.endswith(".py") or "/" in where
    module = _load_file(where, target) if is_file else _load_module(where, target)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise TargetNotLoaded(f"{target}: {where} has no attribute {attribute!r}") from None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return [value]


def _load_module(name: str, target: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    top = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetNotLoaded(
                f"{target}: there is no module {error.name!r} in {here} or on the path"
                f"{_hidden(top)}"
            ) from error
        raise TargetNotLoaded(f"{target}: importing it failed: {error}") from error
    except Exception as error:  # the user's code may raise anything
        raise TargetNotLoaded(
            f"{target}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    return module


def _hidden(top: str) -> str:
    local = [Path(f"{top}.py"), Path(top)]
    if top in _OWN_PACKAGES and any(path.exists() for path in local):
        return (
            f"; your {top!r} is hidden by the gateway's package of that name, "
            f"so name the file: ./{top}.py:ATTRIBUTE"
        )
    return ""


def _load_file(where: str, target: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise TargetNotLoaded(f"{target}: there is no file {path}")
    # Under a name of its own: the file may be called like one of our packages. What it imports
    # from its own folder is found there, but after ours.
    name = f"nexus_target_{path.stem}"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetNotLoaded(f"{target}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise TargetNotLoaded(
            f"{target}: running it failed: {type(error).__name__}: {error}"
        ) from error
    return module
