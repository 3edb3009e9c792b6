"""How the arguments and results of steps are written to the journal and read back."""

import base64
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any, get_type_hints
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from pydantic_core import (
    PydanticSerializationError,
    SchemaSerializer,
    core_schema,
    to_json,
    to_jsonable_python,
)

from handlers.errors import StepArgumentsInvalid

_UNENCODABLE = (PydanticSerializationError, ValueError, TypeError, RecursionError)
_plain = SchemaSerializer(core_schema.any_schema())

# Weak: a function that a handler defines inside itself holds all that the handler knows.
_result_types: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def check_function(function: Any) -> None:
    """Check that a step was given a function.

    Raises:
        StepArgumentsInvalid: It was not: a mistake in the handler, that no retry mends.
    """
    if type(function) is FunctionType:
        return  # nearly all are, and `isawaitable` looks at many things
    if inspect.isawaitable(function):
        if inspect.iscoroutine(function):
            function.close()
        raise StepArgumentsInvalid(
            "a step takes the function and its arguments, not a call of it: "
            "ctx.step(charge, order), not ctx.step(charge(order))"
        )
    if not callable(function):
        raise StepArgumentsInvalid(
            f"a step takes a function and its arguments, ctx.step(charge, order), not {function!r}"
        )


def is_miscall(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a function cannot take these arguments: a mistake in the handler's code."""
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return True
    except ValueError:  # some built-in functions have no signature
        return False
    return False


def encode(value: Any, as_type: Any = Any) -> bytes:
    """Return a step's result as JSON; bytes, where declared as just that, in base64.

    Raises:
        StepArgumentsInvalid: It holds something that JSON cannot.
    """
    if inspect.iscoroutine(value):
        value.close()
        raise StepArgumentsInvalid(
            "a step's function returned a coroutine: make it `async def`, and await within"
        )
    try:
        if as_type is bytes and isinstance(value, bytes):
            return to_json(base64.b64encode(value).decode())
        return to_json(value)
    except _UNENCODABLE as error:
        raise StepArgumentsInvalid(f"a step's result cannot be recorded: {error}") from error


def decode(data: bytes, as_type: Any) -> Any:
    """Return the value that `encode` wrote, as the type that the step's function declares.

    Raises:
        ValueError: It does not fit the type.
    """
    if as_type is bytes:
        return base64.b64decode(json.loads(data), validate=True)
    return _adapter(as_type).validate_json(data)


def hash_arguments(args: tuple[Any, ...]) -> bytes:
    """Return a digest of a step's arguments: their JSON with sorted keys.

    Raises:
        StepArgumentsInvalid: They hold something that JSON cannot.
    """
    try:
        text = _canonical(_plain.to_python(args))
    except _UNENCODABLE as error:
        raise StepArgumentsInvalid(
            f"the arguments of a step must be JSON-serializable values: {error}"
        ) from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def result_type(function: Callable[..., Any]) -> Any:
    """Return the declared result of a step's function; Any where it declares none.

    A step without a declared result gives plain JSON values, the first time as on replay.
    """
    function = getattr(function, "__func__", function)  # a bound method is made anew each time
    try:
        declared = _result_types.get(function)
    except TypeError:  # neither hashable nor weakly referable: nothing to remember it by
        return _declared_result(function)
    if declared is None:
        declared = _result_types[function] = _declared_result(function)
    return declared


def _declared_result(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return", Any)
    except (TypeError, NameError, AttributeError):
        return Any


def _canonical(value: Any) -> str:
    try:
        return _CANONICAL.encode(value)
    except TypeError:
        return _CANONICAL.encode(_with_text_keys(value))


def _with_text_keys(value: Any) -> Any:
    """Return the value with dates, UUIDs and the like as text where they are keys."""
    if isinstance(value, dict):
        items = [(to_jsonable_python({key: None}), item) for key, item in value.items()]
        return {next(iter(key)): _with_text_keys(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_with_text_keys(item) for item in value]
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        # Sets are in another order in the next process.
        return sorted(_canonical(item) for item in value)
    if isinstance(value, Iterator):
        message = "an iterator can be read only once; give a list"
        raise ValueError(message)  # noqa: TRY004  # a TypeError here is about keys
    return to_jsonable_python(value, bytes_mode="base64")


# `json.dumps` would make one anew at each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_jsonable)


def _adapter(as_type: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(as_type)
    except TypeError:  # Annotated with unhashable metadata cannot be a key of the cache
        return TypeAdapter(as_type)


@lru_cache(maxsize=1024)
def _cached_adapter(as_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(as_type)
