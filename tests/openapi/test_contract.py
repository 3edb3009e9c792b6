import tomllib
from collections.abc import Iterator
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.openapi.contract import (
    Json,
    documented,
    errors_of,
    examples_of,
    resolved,
)
from tests.support.gateway_process import REPOSITORY


def test_the_file_is_valid(contract: Json) -> None:
    assert list(OpenAPIV31SpecValidator(contract).iter_errors()) == []


def test_the_file_has_the_version_of_the_distribution(contract: Json) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert contract["info"]["version"] == project["version"]


def test_everything_is_said(contract: Json) -> None:
    tags = {tag["name"] for tag in contract["tags"]}
    for operation in documented(contract):
        definition = operation.definition
        assert {"operationId", "summary", "description", "x-codeSamples"} <= set(definition)
        assert set(definition["tags"]) <= tags
        assert all("description" in parameter for parameter in operation.parameters)
        for response in definition["responses"].values():
            assert resolved(contract, response)["description"]


def test_no_component_is_unused(contract: Json) -> None:
    used = set(references(contract))
    defined = {
        f"#/components/{kind}/{name}"
        for kind, components in contract["components"].items()
        for name in components
        if kind != "securitySchemes"
    }
    assert defined - used == set()


def references(node: Any) -> Iterator[str]:
    match node:
        case dict():
            if isinstance(reference := node.get("$ref"), str):
                yield reference
            for value in node.values():
                yield from references(value)
        case list():
            for value in node:
                yield from references(value)


def test_every_example_fits_its_schema(contract: Json) -> None:
    found = list(media_types(contract))
    wrong = [
        (name, error)
        for media_type in found
        for name, value in examples_of(media_type).items()
        for error in errors_of(contract, media_type.get("schema", {}), value)
    ]
    assert wrong == []
    assert sum(len(examples_of(media_type)) for media_type in found) >= 15


def media_types(node: Any) -> Iterator[Json]:
    match node:
        case dict():
            if isinstance(content := node.get("content"), dict):
                yield from content.values()
            for value in node.values():
                yield from media_types(value)
        case list():
            for value in node:
                yield from media_types(value)


def test_every_example_of_a_parameter_fits_its_schema(contract: Json) -> None:
    parameters = [p for operation in documented(contract) for p in operation.parameters]
    examples = [
        (p["schema"], value)
        for p in parameters
        for value in [
            *([p["example"]] if "example" in p else []),
            *(example["value"] for example in p.get("examples", {}).values()),
        ]
    ]
    assert len(examples) > 20
    assert [e for schema, value in examples for e in errors_of(contract, schema, value)] == []


def test_every_example_of_a_schema_fits_it(contract: Json) -> None:
    schemas = contract["components"]["schemas"]
    examples = [
        (schema, value) for schema in schemas.values() for value in schema.get("examples", [])
    ]
    assert len(examples) > 2
    assert [e for schema, value in examples for e in errors_of(contract, schema, value)] == []


def test_a_parameter_is_given_in_one_form(contract: Json) -> None:
    # Some tools ignore a header parameter of one of these names.
    names = {p["name"].lower() for o in documented(contract) for p in o.parameters}
    assert not names & {"accept", "content-type", "authorization"}
