"""The hand-kept contract, read for the tests."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import jsonschema_rs
import yaml

from gateway.openapi import openapi_yaml

Json = dict[str, Any]
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def load_contract() -> Json:
    return cast("Json", yaml.safe_load(openapi_yaml()))


@dataclass(frozen=True)
class Documented:
    """One operation of a document; `parameters` are those of its path too, references followed."""

    method: str
    path: str
    definition: Json
    parameters: list[Json]

    @property
    def id(self) -> str:
        return cast("str", self.definition["operationId"])

    def path_with_examples(self, example: str = "") -> str:
        path = self.path
        for parameter in self.parameters:
            if parameter["in"] == "path":
                value = example_of(parameter, example)
                path = path.replace("{" + parameter["name"] + "}", value)
        return path


def documented(document: Json) -> Iterator[Documented]:
    """Yield every operation of a document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                definition = item[method]
                parameters = [*item.get("parameters", []), *definition.get("parameters", [])]
                yield Documented(
                    method, path, definition, [resolved(document, p) for p in parameters]
                )


def resolved(document: Json, node: Any) -> Any:
    """Follow the reference that a node may be."""
    while isinstance(node, dict) and "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def example_of(parameter: Json, name: str) -> str:
    if "example" in parameter:
        return str(parameter["example"])
    examples = parameter["examples"]
    return str((examples.get(name) or next(iter(examples.values())))["value"])


def examples_of(media_type: Json) -> Json:
    """Return the examples of a body, by name."""
    examples = {name: example["value"] for name, example in media_type.get("examples", {}).items()}
    if "example" in media_type:
        examples[""] = media_type["example"]
    return examples


def errors_of(document: Json, schema: Any, value: Any) -> list[str]:
    """Return where a value does not fit a schema of a document."""
    whole = {"allOf": [schema], "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(json.loads(json.dumps(whole)))
    return [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(value)]
