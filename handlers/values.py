"""How the arguments and results of steps are written to the journal and read back."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from handlers.errors import StepArgumentsInvalid


def encode(value: Any) -> bytes:
    """Return a step's result as JSON.

    Raises:
        StepArgumentsInvalid: It holds something that JSON cannot.
    """
    try:
        return to_json(value)
    except (PydanticSerializationError, UnicodeDecodeError, ValueError) as error:
        raise StepArgumentsInvalid(f"a step's result cannot be recorded: {error}") from error


def decode(data: bytes, as_type: Any) -> Any:
    """Return the value that `encode` wrote, as the type that the step's function declares."""
    return _adapter(as_type).validate_json(data)


def hash_arguments(args: tuple[Any, ...]) -> bytes:
    """Return a digest of a step's arguments: their JSON with sorted keys.

    Raises:
        StepArgumentsInvalid: They hold something that JSON cannot.
    """
    try:
        text = json.dumps(to_jsonable_python(args), sort_keys=True, separators=(",", ":"))
    except (PydanticSerializationError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise StepArgumentsInvalid(
            f"the arguments of a step must be JSON-serializable values: {error}"
        ) from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@lru_cache(maxsize=4096)
def result_type(function: Callable[..., Any]) -> Any:
    """Return the declared result of a step's function; Any where it declares none.

    A step without a declared result gives plain JSON values, the first time as on replay.
    """
    try:
        return get_type_hints(function).get("return", Any)
    except (TypeError, NameError, AttributeError):
        return Any


@lru_cache(maxsize=1024)
def _adapter(as_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(as_type)
