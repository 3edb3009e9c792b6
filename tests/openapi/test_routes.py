from pathlib import Path
from typing import Any

import pytest
from starlette.routing import BaseRoute, Route

from gateway import create_app
from gateway.nexus_routes import NexusRoute
from gateway.routes import _AnyPath
from tests.openapi.conftest import Shop
from tests.openapi.contract import Documented, Json, documented, load_contract

DOCUMENTED = list(documented(load_contract()))
PREFIXES = ("/services", "/nexus/endpoints/{endpoint}/services")
NEXUS_FORMS = {
    ("post", "/{service}/{operation}"),
    ("get", "/{service}/{operation}"),
    ("get", "/{service}/{operation}/result"),
    ("post", "/{service}/{operation}/cancel"),
    ("post", "/{service}/{operation}/{token}/cancel"),
}


def operations_of(route: BaseRoute) -> set[tuple[str, str]]:
    match route:
        case NexusRoute():
            return {(m, f"{prefix}{form}") for prefix in PREFIXES for m, form in NEXUS_FORMS}
        case _AnyPath():
            return set()
        case Route():
            view: Any = route.endpoint
            return {(view._methods[0].lower(), route.path)}
        case _:
            raise AssertionError(f"a route of a new kind: {route}")


def test_the_file_and_the_routes_are_the_same(contract: Json) -> None:
    app = create_app(database="sqlite:///not-opened.db")
    routes = {operation for route in app.routes for operation in operations_of(route)}

    assert {(operation.method, operation.path) for operation in documented(contract)} == routes
    assert not Path("not-opened.db").exists()


@pytest.mark.parametrize("operation", DOCUMENTED, ids=lambda o: o.id)
def test_a_path_of_the_file_is_served(operation: Documented, shop: Shop) -> None:
    answer = shop.client.request(operation.method, operation.path_with_examples())

    assert "there is nothing at" not in answer.text
    assert str(answer.status_code) in operation.definition["responses"]


@pytest.mark.parametrize("path", {o.path: o for o in DOCUMENTED}.values(), ids=lambda o: o.path)
def test_a_method_that_the_file_does_not_have_is_a_bad_request(
    path: Documented, shop: Shop
) -> None:
    allowed = {o.method.upper() for o in DOCUMENTED if o.path == path.path}
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - allowed
    answers = [shop.client.request(m, path.path_with_examples()) for m in sorted(methods)]

    assert {answer.status_code for answer in answers} == {400}
    assert {answer.json()["details"]["type"] for answer in answers} == {"BAD_REQUEST"}


@pytest.mark.parametrize(
    "operation", [o for o in DOCUMENTED if o.method == "get"], ids=lambda o: o.id
)
def test_head_is_answered_like_get_without_the_body(operation: Documented, shop: Shop) -> None:
    path = operation.path_with_examples()
    get, head = shop.client.get(path), shop.client.head(path)

    assert (head.status_code, head.content) == (get.status_code, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/nothing",
        "/services",
        "/services/a",
        "/nexus/callback/a",
        "/nexus/callback/a%0Ab",
        "/nexus/endpoints/a",
        "/a%0Ab",
    ],
)
def test_a_path_that_the_file_does_not_have_is_the_protocols_own_error(
    path: str, shop: Shop
) -> None:
    answer = shop.client.post(path)

    assert (answer.status_code, answer.json()["metadata"]["type"]) in {
        (404, "nexus.HandlerError"),
        (400, "nexus.HandlerError"),
    }
