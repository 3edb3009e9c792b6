import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import pytest
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

import examples.orders
from gateway.openapi import openapi_json, openapi_yaml
from gateway.runtime import registry
from handlers import DurableContext, durable_operation
from tests.openapi.contract import Json, documented, errors_of, resolved

T = TypeVar("T")


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Page(BaseModel, Generic[T]):
    items: list[T]


class Address(TypedDict):
    street: str


@dataclass
class Point:
    x: float
    y: float = float("inf")


class Aliased(BaseModel):
    inner_name: int = Field(alias="outerName")
    extra: Any = Field(default=None, json_schema_extra={"x-odd": cast("Any", {1, 2})})


class Renamed(BaseModel):
    name: int = Field(validation_alias="was", serialization_alias="is")


class Failure(BaseModel):
    """A model with the name of a schema of the hand-kept contract."""

    reason: str


class Opaque:
    """Nothing that pydantic knows."""


class Hostile:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        raise ZeroDivisionError


def service(
    input_type: Any, output_type: Any, *, name: str = "odd", operation: str = "op"
) -> object:
    """Return a handler of a service with one inline operation of these types."""

    async def handle(self: object, ctx: StartOperationContext, value: Any) -> Any:
        return value

    handle.__annotations__ = {
        "ctx": StartOperationContext,
        "value": input_type,
        "return": output_type,
    }
    body = {"op": sync_operation(name=operation)(cast("Any", handle))}
    decorate: Any = service_handler(name=name)
    return cast("object", decorate(type("Handler", (), body))())


def document_of(*services: object, **endpoints: Sequence[object]) -> Json:
    document = json.loads(openapi_json(registry(services, endpoints)))
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    return cast("Json", document)


def start_of(document: Json, path: str = "/services/odd/op") -> Json:
    return cast("Json", document["paths"][path]["post"])


def input_schema(start: Json) -> Any:
    return start["requestBody"]["content"]["application/json"]["schema"]


def output_schema(start: Json) -> Any:
    return start["responses"]["200"]["content"]["application/json"]["schema"]


def test_the_examples_have_paths_with_schemas_of_inputs_and_results() -> None:
    document = document_of(*examples.orders.services, shop=examples.orders.services)

    quote = start_of(document, "/services/orders/quote")
    assert errors_of(document, input_schema(quote), {"item": "mug", "quantity": 2}) == []
    assert errors_of(document, input_schema(quote), {"item": "mug", "quantity": 0}) != []
    place = start_of(document, "/nexus/endpoints/shop/services/orders/place")
    assert output_schema(place) == {"$ref": "#/components/schemas/Receipt"}
    assert place["requestBody"]["required"]


def test_only_an_operation_that_runs_on_has_a_token_to_ask_with() -> None:
    paths = document_of(*examples.orders.services)["paths"]

    assert set(paths["/services/orders/quote"]) == {"post"}
    assert "201" not in paths["/services/orders/quote"]["post"]["responses"]
    assert "/services/orders/quote/cancel" not in paths
    assert set(paths["/services/orders/place"]) == {"post", "get"}
    assert "201" in paths["/services/orders/place"]["post"]["responses"]
    assert "post" in paths["/services/orders/place/cancel"]
    result = paths["/services/orders/place/result"]["get"]
    assert result["responses"]["200"] == paths["/services/orders/place"]["post"]["responses"]["200"]


def test_headers_and_responses_are_references_to_the_hand_kept_ones() -> None:
    document = document_of(*examples.orders.services)
    place = start_of(document, "/services/orders/place")

    names = {resolved(document, parameter)["name"] for parameter in place["parameters"]}
    assert {"callback", "Nexus-Request-Id", "Operation-Timeout", "Prefer"} <= names
    assert not names & {"service", "operation"}
    assert place["responses"]["424"] == {"$ref": "#/components/responses/OperationFailed"}
    assert place["responses"]["default"] == {"$ref": "#/components/responses/Failed"}


def test_the_hand_kept_part_stays_as_it_is() -> None:
    alone, with_services = document_of(), document_of(*examples.orders.services)

    assert with_services["paths"].items() > alone["paths"].items()
    assert with_services["components"]["schemas"].items() > alone["components"]["schemas"].items()


@pytest.mark.parametrize(
    ("as_type", "good", "bad"),
    [
        (int, 1, "x"),
        (int | None, None, "x"),
        (Tree, {"value": 1, "children": [{"value": 2}]}, {"children": []}),
        (Page[int], {"items": [1]}, {"items": ["x"]}),
        (Page[Page[Tree]], {"items": [{"items": [{"value": 1}]}]}, {"items": [{"items": [1]}]}),
        (Address, {"street": "a"}, {}),
        (Point, {"x": 1.5}, {"y": 1}),
        (list[Point | Address], [{"x": 1}, {"street": "a"}], [{}]),
        (dict[str, list[int]], {"a": [1]}, {"a": 1}),
        (Aliased, {"outerName": 1}, {"inner_name": 1}),
    ],
    ids=str,
)
def test_a_type_is_described(as_type: Any, good: Any, bad: Any) -> None:
    document = document_of(service(as_type, as_type))
    start = start_of(document)

    assert errors_of(document, input_schema(start), good) == []
    assert errors_of(document, input_schema(start), bad) != []
    assert output_schema(start) != {}
    assert start["requestBody"].get("required", False) is (as_type != int | None)


@pytest.mark.parametrize(
    "as_type", [Any, Opaque, Hostile, list[Opaque], Callable[[], int]], ids=str
)
def test_a_type_that_cannot_be_described_may_be_anything(as_type: Any) -> None:
    start = start_of(document_of(service(as_type, as_type), service(int, int, name="other")))

    anything: Json = {"application/json": {"schema": {}}, "application/octet-stream": {}}
    assert start["requestBody"] == {"content": anything}
    assert start["responses"]["200"]["content"] == anything


@pytest.mark.parametrize("as_type", [bytes, bytes | None], ids=str)
def test_bytes_are_octets_and_not_json(as_type: Any) -> None:
    start = start_of(document_of(service(as_type, as_type)))

    assert start["requestBody"]["content"] == {"application/octet-stream": {}}
    assert start["responses"]["200"]["content"] == {"application/octet-stream": {}}


def test_null_is_no_body() -> None:
    start = start_of(document_of(service(None, None)))

    assert "requestBody" not in start
    assert "content" not in start["responses"]["200"]


def test_two_models_of_one_name_stay_apart() -> None:
    def make(kind: Any) -> Any:
        class Item(BaseModel):
            id: kind

        return Item

    document = document_of(
        service(make(int), make(str), name="a"), service(make(list[int]), make(int), name="b")
    )
    a, b = start_of(document, "/services/a/op"), start_of(document, "/services/b/op")

    assert errors_of(document, input_schema(a), {"id": 1}) == []
    assert errors_of(document, output_schema(a), {"id": "x"}) == []
    assert errors_of(document, output_schema(a), {"id": 1}) != []
    assert errors_of(document, input_schema(b), {"id": [1]}) == []
    assert errors_of(document, input_schema(b), {"id": 1}) != []


def test_a_model_that_reads_otherwise_than_it_writes_is_described_both_ways() -> None:
    document = document_of(service(Renamed, Renamed))
    start = start_of(document)

    assert errors_of(document, input_schema(start), {"was": 1}) == []
    assert errors_of(document, output_schema(start), {"was": 1}) != []
    assert errors_of(document, output_schema(start), {"is": 1}) == []


def test_a_model_with_the_name_of_our_own_schema_leaves_ours_alone() -> None:
    document = document_of(service(Failure, list[Failure]))
    start = start_of(document)

    assert (
        document["components"]["schemas"]["Failure"]
        == (document_of()["components"]["schemas"]["Failure"])
    )
    assert input_schema(start) == {"$ref": "#/components/schemas/Failure_"}
    assert errors_of(document, output_schema(start), [{}]) != []


def test_names_that_must_be_escaped_are_paths_and_ids_of_their_own() -> None:
    document = document_of(
        service(int, int, name="a/b", operation="{c}"),
        service(int, int, name="a", operation="b/{c}"),
        service(int, int, name="größe", operation="x y"),
        **{"ein/ort": [service(int, int, name="a/b", operation="{c}")]},
    )

    own = set(document["paths"]) - set(document_of()["paths"])
    assert own == {
        "/services/a%2Fb/%7Bc%7D",
        "/services/a/b%2F%7Bc%7D",
        "/services/gr%C3%B6%C3%9Fe/x%20y",
        "/nexus/endpoints/ein%2Fort/services/a%2Fb/%7Bc%7D",
    }
    ids = [operation.id for operation in documented(document)]
    assert len(ids) == len(set(ids))


def test_one_service_alone_can_be_asked_for() -> None:
    services = registry([service(int, int, name="a"), service(Tree, int, name="b")], None)
    document = json.loads(openapi_json(services, only_service="a"))

    assert "/services/a/op" in document["paths"]
    assert "/services/b/op" not in document["paths"]
    assert "Tree" not in document["components"]["schemas"]
    assert {tag["name"] for tag in document["tags"]} >= {"Nexus", "a"}


@service_handler(name="described")
class Described:
    @durable_operation
    async def op(self, ctx: DurableContext, value: int) -> int:
        """Do it.

        Twice.
        """
        return value

    @sync_operation
    async def silent(self, ctx: StartOperationContext, value: int) -> int:
        return value


def test_a_handlers_docstring_is_the_description() -> None:
    document = document_of(Described())

    assert start_of(document, "/services/described/op")["description"] == "Do it.\n\nTwice."
    assert "description" not in start_of(document, "/services/described/silent")


def test_the_file_is_found_beside_the_packages() -> None:
    assert openapi_yaml().startswith(b"# The contract")
