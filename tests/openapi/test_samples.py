import json
import shutil
import subprocess

import pytest

from tests.openapi.conftest import Shop
from tests.openapi.contract import (
    Documented,
    Json,
    documented,
    errors_of,
    examples_of,
    load_contract,
    resolved,
)
from tests.openapi.curl import Sample

CONTRACT = load_contract()
DOCUMENTED = {operation.id: operation for operation in documented(CONTRACT)}
SAMPLES = [
    Sample(operation.id, sample["label"], sample["source"])
    for operation in DOCUMENTED.values()
    for sample in operation.definition["x-codeSamples"]
]
STARTS = ("startOperation", "startEndpointOperation")


def token_for(sample: Sample, shop: Shop) -> str:
    match sample.operation_id:
        case "resumeOperation":
            return shop.paused
        case "completeOperation":
            return shop.approval()
        case "getOperationResult":
            return shop.shipped_order()
        case _:
            return shop.order()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{s.operation_id}-{s.status}")
def test_a_sample_is_answered_as_its_label_says(sample: Sample, shop: Shop, contract: Json) -> None:
    if "$ID" in sample.source:
        request = sample.request(shop.base_url, callback_id=str(shop.dead_letter()))
    else:
        request = sample.request(shop.base_url, token_for(sample, shop))

    answer = shop.client.send(request)

    assert answer.status_code == sample.status, answer.text
    operation = DOCUMENTED[sample.operation_id]
    response = resolved(contract, operation.definition["responses"][str(sample.status)])
    assert fits(contract, response, answer.headers.get("content-type"), answer.content) == []
    assert request.method.lower() == operation.method


def fits(contract: Json, response: Json, content_type: str | None, body: bytes) -> list[str]:
    if "content" not in response:
        return [] if not body and content_type is None else ["a body that is not documented"]
    assert content_type is not None
    media_type = response["content"][content_type.partition(";")[0]]
    if not content_type.endswith("json"):
        return []
    return errors_of(contract, media_type.get("schema", {}), json.loads(body))


@pytest.mark.parametrize("operation", [DOCUMENTED[id_] for id_ in STARTS], ids=lambda o: o.id)
def test_an_example_of_an_input_is_answered_by_the_response_that_has_its_name(
    operation: Documented, shop: Shop, contract: Json
) -> None:
    body = resolved(contract, operation.definition["requestBody"])
    inputs = examples_of(body["content"]["application/json"])
    assert set(inputs) == {"quote", "place", "declined", "anvil"}
    for name, value in inputs.items():
        headers = {"Prefer": "wait=10"} if name == "declined" else {}

        answer = shop.client.post(operation.path_with_examples(name), json=value, headers=headers)

        status = str(answer.status_code)
        response = resolved(contract, operation.definition["responses"][status])
        expected = examples_of(response["content"]["application/json"])[name]
        if name == "place":
            expected["token"] = answer.json()["token"]
        assert answer.json() == expected


@pytest.mark.parametrize("name", ["result", "failed", "canceled"])
def test_an_example_of_an_ending_ends_the_operation(name: str, shop: Shop, contract: Json) -> None:
    body = DOCUMENTED["completeOperation"].definition["requestBody"]
    value = examples_of(body["content"]["application/json"])[name]
    token = shop.approval()

    answer = shop.client.post(f"/api/v1/operations/{token}/complete", json=value)

    assert answer.status_code == 204
    shown = shop.client.get(f"/api/v1/operations/{token}").json()
    if name == "result":
        assert shown["output"]["json"] == value["result"]
    else:
        assert (shown["state"], shown["failure"]["message"]) == (value["state"], value["message"])


def test_a_result_is_412_while_the_operation_runs_and_408_after_waiting(shop: Shop) -> None:
    path = "/services/orders/place/result"
    token = shop.order()
    statuses = [
        shop.client.get(path, params={"token": token, **wait}).status_code
        for wait in ({}, {"wait": "20ms"})
    ]
    assert statuses == [412, 408]


def test_a_result_that_is_there_needs_no_wait(shop: Shop) -> None:
    token = shop.shipped_order()
    answer = shop.client.get("/services/orders/place/result", params={"token": token})
    assert (answer.status_code, answer.json()["item"]) == (200, "mug")


def test_an_operation_that_a_durable_handler_runs_cannot_be_ended_from_outside(shop: Shop) -> None:
    answer = shop.client.post(f"/api/v1/operations/{shop.order()}/complete", json={"result": 1})
    assert answer.status_code == 409


@pytest.mark.skipif(shutil.which("curl") is None, reason="the samples are for people with curl")
def test_the_commands_of_the_introduction_work_as_they_stand(shop: Shop, contract: Json) -> None:
    introduction = contract["info"]["description"]
    script = introduction.split("```sh\n")[1].split("```")[0]
    script = script.replace("http://127.0.0.1:8080", shop.base_url).replace("curl", "curl -sf")

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert '"total_cents":6800' in done.stdout
    assert '"tracking":"trk-' in done.stdout
