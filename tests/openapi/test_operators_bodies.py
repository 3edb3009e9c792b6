import json

import pytest

from tests.openapi.conftest import Shop
from tests.openapi.contract import Json, errors_of


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"result": NaN}',
        b'{"result": "\\ud800"}',
        b'{"result": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"result": 1, "more": 2}',
        b'{"state": "failed"}',
        b'{"state": "failed", "message": 1}',
        b'{"state": "failed", "message": "x", "result": 1}',
        b'{"state": "running", "message": "x"}',
    ],
    ids=lambda body: body[:40].decode(),
)
def test_an_ending_that_the_file_does_not_have_is_a_bad_request(
    body: bytes, shop: Shop, contract: Json
) -> None:
    token = shop.approval()

    answer = shop.client.post(f"/api/v1/operations/{token}/complete", content=body)

    assert (answer.status_code, answer.json()["details"]["type"]) == (400, "BAD_REQUEST")
    assert shop.client.get(f"/api/v1/operations/{token}").json()["state"] == "running"
    try:
        ending = json.loads(body)
    except ValueError:
        return
    if b"NaN" not in body and b"ud800" not in body and b"[[" not in body:
        assert errors_of(contract, contract["components"]["schemas"]["Ending"], ending) != []


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"[1]", {"json": [1]}),
        (b"NaN", {"base64": "TmFO"}),
        (b'"\\ud800"', {"base64": "Ilx1ZDgwMCI="}),
        (b"\xff", {"base64": "/w=="}),
        (b"[" * 5000, {"base64": "W1tb" * 1666 + "W1s="}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_input_is_shown_as_json_only_where_it_is_json(
    data: bytes, shown: Json, shop: Shop
) -> None:
    answer = shop.client.post(
        "/services/approvals/anything",
        content=data,
        headers={"Content-Type": "application/octet-stream"},
    )
    token = answer.json()["token"]

    shown_by_operators = shop.client.get(f"/api/v1/operations/{token}").json()

    assert shown_by_operators["input"] == {"content_type": "application/octet-stream", **shown}
