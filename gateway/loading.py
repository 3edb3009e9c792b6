"""Loading TARGETs: `MODULE:ATTRIBUTE` or a file, `./orders/services.py:services`."""

import importlib
import importlib.util
import sys
import traceback
import zlib
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
    if not colon or not where.strip() or not attribute.strip():
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
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return [value]
    if not value:
        raise TargetNotLoaded(f"{target}: the list is empty; put service handler instances into it")
    return list(value)


def _load_module(name: str, target: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetNotLoaded(
            f"{target}: {name!r} cannot be a module's name; a file is named as ./FILE.py:ATTRIBUTE"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or (name != error.name and not name.startswith(f"{error.name}.")):
            raise _failed(target, error) from error
        _check_not_hidden(name, target, None)
        raise TargetNotLoaded(
            f"{target}: there is no module {error.name!r} in {here} or on the path"
        ) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(target, error) from error
    _check_not_hidden(name, target, module)
    return module


def _check_not_hidden(name: str, target: str, loaded: ModuleType | None) -> None:
    """Check that a module in this folder is not hidden by one that was imported before.

    Raises:
        TargetNotLoaded: It is; the message says by which, and how to name it instead.
    """
    stem = Path(*name.split("."))
    for local in (stem.with_suffix(".py"), stem / "__init__.py"):
        if not local.is_file():
            continue
        origin = None if loaded is None else getattr(loaded, "__file__", None)
        if origin is not None and local.samefile(origin):
            return
        top = name.partition(".")[0]
        owner = "the gateway's package" if top in _OWN_PACKAGES else "an imported module"
        attribute = target.rpartition(":")[2]
        raise TargetNotLoaded(
            f"{target}: your {local} is hidden by {owner} {top!r}, "
            f"so name the file: ./{local}:{attribute}"
        )


def _load_file(where: str, target: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise TargetNotLoaded(f"{target}: there is no file {path}")
    # Under a name of its own: the file may be called like one of our packages, or like another
    # target's. What it imports from its own folder is found there, but after ours.
    name = f"nexus_target_{path.stem}_{zlib.crc32(bytes(path)):08x}"
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetNotLoaded(f"{target}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        del sys.modules[name]
        raise _failed(target, error) from error
    return module


def _failed(target: str, error: BaseException) -> TargetNotLoaded:
    """Say in one line what the user's module raised, and where."""
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"]
    if frames and not isinstance(error, SyntaxError):  # which says itself where
        text += f" ({frames[-1].filename}, line {frames[-1].lineno})"
    hint = ""
    top = str(getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ImportError) and top in _OWN_PACKAGES:
        hint = f"; {top!r} is a package of the gateway, so give a module of your own another name"
    return TargetNotLoaded(f"{target}: importing it failed: {text}{hint}")
