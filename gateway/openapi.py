"""The contract: `openapi.yaml` as it stands, and with the hosted services added."""

import copy
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, Literal
from urllib.parse import quote

import pydantic_core
import yaml
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaWarningKind
from pydantic_core import PydanticSerializationError

from gateway.operators_api import path_of
from handlers.services import HostedOperation, Kind, ServiceRegistry
from nexus_spec.content import JSON, OCTETS

logger = logging.getLogger(__name__)

_GENERIC_PATH = "/services/{service}/{operation}"
_IN_PATH = ("/Service", "/StartedOperation", "/RecordedOperation")
_REFERENCE = "#/components/schemas/{model}"

_Document = dict[str, Any]
_Side = Literal["input", "output"]
_MODES: Mapping[_Side, JsonSchemaMode] = {"input": "validation", "output": "serialization"}
_Schemas = dict[tuple[HostedOperation, _Side], _Document]


@lru_cache(maxsize=1)
def openapi_yaml() -> bytes:
    """Return the hand-kept contract."""
    packaged = files("gateway") / "openapi.yaml"
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parent.parent / "openapi.yaml").read_bytes()


@lru_cache(maxsize=8)  # reading YAML takes tens of milliseconds, and services do not change
def openapi_json(services: ServiceRegistry, *, only_service: str | None = None) -> bytes:
    """Return the contract with the paths of each hosted operation and the schemas of its types.

    Types that pydantic cannot describe, say those of a codec of one's own, have no schema.
    """
    # The C loader is ten times as fast, and not in every build of PyYAML.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: _Document = yaml.load(openapi_yaml(), loader)  # noqa: S506  # both are safe
    hosted = [h for h in services if only_service is None or h.service == only_service]
    schemas, definitions = _describe(hosted, frozenset(document["components"]["schemas"]))
    document["components"]["schemas"].update(definitions)
    generic = document["paths"]
    for operation in hosted:
        document["paths"] |= _paths(operation, generic, schemas)
    known_tags = {tag["name"] for tag in document["tags"]}
    own_tags = dict.fromkeys(operation.service for operation in hosted)
    document["tags"] += [{"name": name} for name in own_tags if name not in known_tags]
    # A user's `json_schema_extra` may hold anything.
    return pydantic_core.to_json(document, inf_nan_mode="null", fallback=str)


# ---------------------------------------------------------------- paths


def _paths(operation: HostedOperation, generic: _Document, schemas: _Schemas) -> _Document:
    path = path_of(operation)
    start = _own(operation, generic[_GENERIC_PATH]["post"], "start")
    start["summary"] = f"Start {operation.service}/{operation.operation}"
    if operation.description:
        start["description"] = inspect.cleandoc(operation.description)
    else:
        del start["description"]
    body = _body(operation, "input", schemas)
    if body is None:
        del start["requestBody"]
    else:
        start["requestBody"] = body
    result = _result(operation, schemas)
    start["responses"]["200"] = result
    if operation.kind is Kind.INLINE:
        del start["responses"]["201"]
        return {path: {"post": start}}
    info = _own(operation, generic[_GENERIC_PATH]["get"], "info")
    fetch = _own(operation, generic[f"{_GENERIC_PATH}/result"]["get"], "result")
    fetch["responses"]["200"] = result
    cancel = _own(operation, generic[f"{_GENERIC_PATH}/cancel"]["post"], "cancel")
    return {
        path: {"post": start, "get": info},
        f"{path}/result": {"get": fetch},
        f"{path}/cancel": {"post": cancel},
    }


def _own(operation: HostedOperation, generic: _Document, action: str) -> _Document:
    """Return an operation of the hand-kept contract as one of a hosted operation's own."""
    own = copy.deepcopy(generic)
    own.pop("x-codeSamples", None)
    names = (operation.endpoint, operation.service, operation.operation, action)
    # No name can hold an unescaped slash, so no two ids are the same.
    own["operationId"] = "/".join(quote(name, safe="") for name in names)
    own["tags"] = [operation.service]
    own["parameters"] = [
        parameter for parameter in own["parameters"] if not parameter["$ref"].endswith(_IN_PATH)
    ]
    return own


def _body(operation: HostedOperation, side: _Side, schemas: _Schemas) -> _Document | None:
    """Return the contents of a body, None where there is never one."""
    as_type = operation.input_type if side == "input" else operation.output_type
    if as_type is NoneType:
        return None
    schema = schemas.get((operation, side), {})
    if as_type is bytes or as_type == bytes | None:
        return {"content": {OCTETS: {}}}
    content: _Document = {JSON: {"schema": schema}}
    if not schema:
        content[OCTETS] = {}
    if side == "input" and schema and not _takes_null(as_type):
        return {"required": True, "content": content}
    return {"content": content}


def _result(operation: HostedOperation, schemas: _Schemas) -> _Document:
    body = _body(operation, "output", schemas)
    null = "Null is no body and no `Content-Type`."
    generic = "#/components/responses/Result/headers"
    return {
        "description": f"The result. {null}" if body else "The result is null: no body.",
        "headers": {
            name: {"$ref": f"{generic}/{name}"} for name in ("Nexus-Operation-State", "Nexus-Link")
        },
        **(body or {}),
    }


def _takes_null(as_type: Any) -> bool:
    try:
        TypeAdapter(as_type).validate_python(None)
    except Exception:  # noqa: BLE001  # a type's own validators may raise anything
        return False
    return True


# ---------------------------------------------------------------- schemas


def _describe(
    hosted: list[HostedOperation], reserved: frozenset[str]
) -> tuple[_Schemas, dict[str, Any]]:
    """Return the schema of each input and result, and the definitions that they refer to.

    All are made at once: of two models with one name each then gets a name of its own.
    """

    class Generator(GenerateJsonSchema):
        ignored_warning_kinds: set[JsonSchemaWarningKind] = {  # noqa: RUF012  # as in its parent
            "skipped-choice",
            "non-serializable-default",
        }

        def normalize_name(self, name: str) -> str:
            normalized = super().normalize_name(name)
            return f"{normalized}_" if normalized in reserved else normalized

        def encode_default(self, dft: Any) -> Any:
            encoded = super().encode_default(dft)
            try:
                json.dumps(encoded, allow_nan=False)
            except ValueError as error:  # infinity; the default is then left out
                raise PydanticSerializationError(str(error)) from error
            return encoded

    inputs = [
        ((operation, side), _MODES[side], adapter)
        for operation, side, as_type in _types(hosted)
        if (adapter := _adapter(as_type, _MODES[side], Generator)) is not None
    ]
    made, document = TypeAdapter.json_schemas(
        inputs, ref_template=_REFERENCE, schema_generator=Generator
    )
    schemas = {key: schema for (key, _), schema in made.items()}
    return schemas, document.get("$defs", {})


def _types(hosted: list[HostedOperation]) -> Iterator[tuple[HostedOperation, _Side, Any]]:
    for operation in hosted:
        yield operation, "input", operation.input_type
        yield operation, "output", operation.output_type


def _adapter(
    as_type: Any, mode: JsonSchemaMode, generator: type[GenerateJsonSchema]
) -> TypeAdapter[Any] | None:
    if as_type is None:
        return None  # not annotated
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(as_type)
        adapter.json_schema(mode=mode, schema_generator=generator)
    except Exception:  # a type's own hooks may raise anything
        logger.debug("a type has no JSON Schema", extra={"type": repr(as_type)}, exc_info=True)
        return None
    return adapter
