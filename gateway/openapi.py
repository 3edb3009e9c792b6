"""The contract: `openapi.yaml` as it stands, and with the hosted services added."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from gateway.operators_api import path_of
from handlers.services import HostedOperation, Kind, ServiceRegistry

_SCHEMA_REFERENCE = "#/components/schemas/{model}"


def openapi_yaml() -> bytes:
    """Return the hand-kept contract."""
    packaged = files("gateway") / "openapi.yaml"
    if packaged.is_file():
        return packaged.read_bytes()
    return (Path(__file__).parent.parent / "openapi.yaml").read_bytes()


def openapi_json(services: ServiceRegistry, *, only_service: str | None = None) -> bytes:
    """Return the contract with a path for each hosted operation and schemas of its types."""
    document: dict[str, Any] = yaml.safe_load(openapi_yaml())
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for hosted in services:
        if only_service is not None and hosted.service != only_service:
            continue
        document["paths"][path_of(hosted)] = {"post": _operation(hosted, schemas)}
    return json.dumps(document, default=str).encode()


def _operation(hosted: HostedOperation, schemas: dict[str, Any]) -> dict[str, Any]:
    started = {"$ref": "#/components/responses/Started"}
    result = {
        "description": "The result.",
        "content": {
            "application/json": {"schema": _schema(hosted.output_type, "serialization", schemas)}
        },
    }
    return {
        "operationId": f"{hosted.endpoint}.{hosted.service}.{hosted.operation}",
        "tags": [hosted.service],
        "summary": f"Start {hosted.service}/{hosted.operation}",
        "description": hosted.description or "",
        "requestBody": {
            "content": {
                "application/json": {"schema": _schema(hosted.input_type, "validation", schemas)}
            }
        },
        "responses": {
            "200": result,
            **({} if hosted.kind is Kind.INLINE else {"201": started}),
            "424": {"$ref": "#/components/responses/OperationFailed"},
            "default": {"$ref": "#/components/responses/Failed"},
        },
    }


def _schema(as_type: Any, mode: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a type, its definitions moved to the document's components."""
    if as_type is None:
        return {}
    try:
        schema = TypeAdapter(as_type).json_schema(mode=mode, ref_template=_SCHEMA_REFERENCE)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return {}  # a type of a codec of one's own
    schemas.update(schema.pop("$defs", {}))
    return schema
