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
WITH_A_TOKEN = [
    "getOperationInfo",
    "getOperationResult",
    "cancelOperation",
    "cancelOperationByPath",
    "showOperation",
    "cancelOperationAsOperator",
    "resumeOperation",
    "completeOperation",
]


def config(max_examples: int) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            "generation": {"max-examples": max_examples, "deterministic": True, "database": "none"},
            "phases": {"coverage": {"unexpected-methods": []}, "stateful": {"enabled": False}},
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
    document: dict[str, Any] = json.loads(openapi_json(registry(services, {"shop": services[:1]})))
    for path in load_contract()["paths"]:
        del document["paths"][path]
    return document


contract = schemathesis.openapi.from_dict(load_contract(), config=config(25))
about_operations = schemathesis.openapi.from_dict(load_contract(), config=config(10)).include(
    operation_id=WITH_A_TOKEN
)
hosted = schemathesis.openapi.from_dict(hosted_contract(), config=config(25))


@contract.parametrize()
def test_any_request_is_answered_as_the_file_says(case: Case, shop: Shop) -> None:
    case.call_and_validate(base_url=shop.base_url)


@about_operations.parametrize()
def test_a_request_about_a_real_operation_is_answered_as_the_file_says(
    case: Case, shop: Shop
) -> None:
    token = shop.approval() if case.operation.label.endswith("complete") else shop.order()
    if "token" in case.path_parameters:
        case.path_parameters["token"] = token
    else:
        case.path_parameters |= {"service": "orders", "operation": "place"}
        case.headers["Nexus-Operation-Token"] = token
    case.call_and_validate(base_url=shop.base_url)


@hosted.parametrize()
def test_any_request_to_a_hosted_operation_is_answered_as_its_paths_say(
    case: Case, shop: Shop
) -> None:
    case.call_and_validate(base_url=shop.base_url)
