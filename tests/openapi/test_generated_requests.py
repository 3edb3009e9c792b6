"""Requests that schemathesis makes up from the contract: each is answered as the contract says.

They are the same on every run, so that a failure is found again.
"""

import json
from typing import Any

import schemathesis
from schemathesis import Case

from gateway.openapi import openapi_json
from gateway.runtime import registry
from tests.openapi.conftest import Shop
from tests.openapi.contract import load_contract
from tests.openapi.services import services

# 501 is what canceling an inline operation is documented to answer.
EXPECTED_STATUSES = ["2xx", "4xx", "501"]
# Answered by the same code as the default endpoint.
NAMED_ENDPOINTS = "^/nexus/endpoints/"
WITH_A_TOKEN = [
    "getOperationInfo",
    "getOperationResult",
    "cancelOperation",
    "cancelOperationByPath",
    "showOperation",
    "cancelOperationAsOperator",
    "resumeOperation",
    "completeOperation",
    "signalOperation",
]


def config(max_examples: int, *, coverage: bool = True) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {"max-examples": max_examples, "deterministic": True, "database": "none"},
            "phases": {
                "coverage": {"enabled": coverage, "unexpected-methods": []},
                "stateful": {"enabled": False},
            },
            # Waits would only take time: nothing here ends by itself.
            "parameters": {"header.Prefer": "wait=0", "query.wait": "1ms"},
            "checks": {
                "enabled": False,
                "not_a_server_error": {"enabled": True, "expected-statuses": EXPECTED_STATUSES},
                "status_code_conformance": {"enabled": True},
                "content_type_conformance": {"enabled": True},
                "response_headers_conformance": {"enabled": True},
                "response_schema_conformance": {"enabled": True},
            },
        }
    )


def hosted_contract() -> dict[str, Any]:
    """Return the contract of the hosted operations alone: the rest is in the file."""
    document: dict[str, Any] = json.loads(openapi_json(registry(services, None)))
    for path in load_contract()["paths"]:
        del document["paths"][path]
    return document


contract = schemathesis.openapi.from_dict(load_contract(), config=config(20)).exclude(
    path_regex=NAMED_ENDPOINTS
)
named_endpoints = schemathesis.openapi.from_dict(
    load_contract(), config=config(10, coverage=False)
).include(path_regex=NAMED_ENDPOINTS)
about_operations = schemathesis.openapi.from_dict(
    load_contract(), config=config(10, coverage=False)
).include(operation_id=WITH_A_TOKEN)
about_callbacks = schemathesis.openapi.from_dict(
    load_contract(), config=config(10, coverage=False)
).include(operation_id=["showCallback", "replayCallback"])
hosted = schemathesis.openapi.from_dict(hosted_contract(), config=config(20))


def validate(case: Case[Any], shop: Shop) -> None:
    answer = case.call_and_validate(base_url=shop.base_url)
    # Handlers may answer with what only `default` documents; these here do not.
    assert str(answer.status_code) in case.operation.definition.raw["responses"]


@contract.parametrize()
def test_any_request_is_answered_as_the_file_says(case: Case[Any], shop: Shop) -> None:
    validate(case, shop)


@named_endpoints.parametrize()
def test_any_request_to_a_named_endpoint_is_answered_as_the_file_says(
    case: Case[Any], shop: Shop
) -> None:
    validate(case, shop)


@about_operations.parametrize()
def test_a_request_about_a_real_operation_is_answered_as_the_file_says(
    case: Case[Any], shop: Shop
) -> None:
    token = shop.approval() if case.operation.label.endswith("complete") else shop.order()
    if "token" in case.path_parameters:
        case.path_parameters["token"] = token
    else:
        case.path_parameters |= {"service": "orders", "operation": "place"}
        case.headers["Nexus-Operation-Token"] = token
    validate(case, shop)


@about_callbacks.parametrize()
def test_a_request_about_a_real_callback_is_answered_as_the_file_says(
    case: Case[Any], shop: Shop
) -> None:
    case.path_parameters["id"] = shop.dead_letter()
    validate(case, shop)


@hosted.parametrize()
def test_any_request_to_a_hosted_operation_is_answered_as_its_paths_say(
    case: Case[Any], shop: Shop
) -> None:
    validate(case, shop)
