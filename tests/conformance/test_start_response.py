"""What a start is answered with. Spec: SPEC.md#start-operation, #predefined-failure-types."""

import re

import pytest

from tests.conformance.clause import (
    Clause,
    Row,
    Table,
    failure,
    json_has,
    json_value,
    operation_error,
    row_id,
    scenario,
)
from tests.conformance.services import HANDLERS_LINK, MEBIBYTE
from tests.conformance.world import JSON, World, post

pytestmark = pytest.mark.anyio

SUCCEEDED = {"Nexus-Operation-State": "succeeded"}
ENCODED_LINK = '<myscheme://shop/orders/7?a=1%2C2%3Bb=3>; type="com.example.Order"'
DIGITS = re.compile("[0-9]+")

STATUS = {
    "BAD_REQUEST": 400,
    "UNAUTHENTICATED": 401,
    "UNAUTHORIZED": 403,
    "NOT_FOUND": 404,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "NOT_IMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UPSTREAM_TIMEOUT": 520,
}

CLAUSES: Table = [
    Clause(
        id="200/result",
        says="200 has the result, its content headers and the state",
        request=post("/services/inline/echo", {"a": [1, 2.5, None, "é"]}),
        status=200,
        headers={**SUCCEEDED, "Content-Type": "application/json", "Content-Length": DIGITS},
        body=json_value({"a": [1, 2.5, None, "é"]}),
    ),
    Clause(
        id="200/no-parameters",
        says="a JSON result's type has no parameters, whatever the input's had",
        request=post(
            "/services/inline/echo",
            body=b"[1]",
            headers={"Content-Type": "application/json; charset=utf-8"},
        ),
        status=200,
        headers={**SUCCEEDED, "Content-Type": "application/json"},
        body=b"[1]",
    ),
    Clause(
        id="200/null",
        says="a null result has no body and no type",
        request=post("/services/inline/nothing", None),
        status=200,
        headers={**SUCCEEDED, "Content-Type": None, "Content-Length": "0"},
        body=b"",
    ),
    Clause(
        id="200/bytes",
        says="bytes are application/octet-stream",
        request=post("/services/inline/sized", 3),
        status=200,
        headers={**SUCCEEDED, "Content-Type": "application/octet-stream", "Content-Length": "3"},
    ),
    Clause(
        id="200/no-other-content-headers",
        says="there is no Content- header but type, length and encoding, and no compression",
        request=post(
            "/services/inline/echo",
            "x" * 10_000,
            {"Accept-Encoding": "gzip", "Accept-Language": "de", "Content-Language": "de"},
        ),
        status=200,
        headers={
            "Content-Encoding": None,
            "Content-Language": None,
            "Content-Disposition": None,
            "Transfer-Encoding": None,
            "Content-Type": "application/json",
        },
    ),
    Clause(
        id="200/threaded",
        says="a plain def handler answers alike, from a thread",
        request=post("/services/inline/threaded", 7),
        status=200,
        headers=SUCCEEDED,
        body=json_has(value=7),
    ),
    Clause(
        id="200/infinity",
        says="a result never holds what JSON lacks",
        request=post("/services/inline/echo", body=b"1e400", headers=JSON),
        status=200,
        body=b"null",
    ),
    Clause(
        id="200/largest",
        says="a result has up to 2 MiB",
        request=post("/services/inline/sized", 2 * MEBIBYTE),
        status=200,
        headers={"Content-Length": str(2 * MEBIBYTE)},
    ),
    Clause(
        id="200/too-large",
        says="a larger one is refused for good, typed",
        request=post("/services/inline/sized", 2 * MEBIBYTE + 1),
        status=500,
        headers={"Nexus-Request-Retryable": "false", "Nexus-Operation-State": None},
        body=failure("INTERNAL", str(2 * MEBIBYTE), retryable=False),
    ),
    Clause(
        id="201/operation-info",
        says="201 has the token and the state running, as JSON",
        request=post("/services/durable/forever", None),
        status=201,
        headers={
            "Content-Type": "application/json",
            "Nexus-Operation-State": None,
            "Location": None,
            "Nexus-Link": None,
        },
        body=json_has(state="running"),
    ),
    Clause(
        id="201/quick-operation",
        says="also for an operation that ends at once: it was started",
        request=post("/services/durable/echo", 1),
        status=201,
        body=json_has(state="running"),
    ),
    Clause(
        id="424/failed",
        says="424 is a typed OperationError with its causes, and the deprecated state header",
        request=post("/services/inline/error", "failed"),
        status=424,
        headers={"Content-Type": "application/json", "Nexus-Operation-State": "failed"},
        body=operation_error("failed", "out of stock", "shelf empty"),
    ),
    Clause(
        id="424/canceled",
        says="canceled is a state of its own",
        request=post("/services/inline/error", "canceled"),
        status=424,
        headers={"Nexus-Operation-State": "canceled"},
        body=operation_error("canceled", "out of stock", "shelf empty"),
    ),
    Clause(
        id="424/threaded",
        says="from a plain def handler as well",
        request=post("/services/inline/threaded-error", "failed"),
        status=424,
        headers={"Nexus-Operation-State": "failed"},
        body=operation_error("failed", "out of stock", "shelf empty"),
    ),
    Clause(
        id="424/typed-for-everybody",
        says="typed whatever the caller's headers say",
        request=post(
            "/services/inline/error", "failed", {"Temporal-Nexus-Failure-Support": "false"}
        ),
        status=424,
        body=operation_error("failed", "out of stock", "shelf empty"),
    ),
    Clause(
        id="424/application-error",
        says="an application error is the cause, to be unwrapped",
        request=post("/services/inline/error", "application"),
        status=424,
        body=json_value(
            {
                "message": "card declined",
                "metadata": {"type": "nexus.OperationError", "unwrap-error": "true"},
                "details": {"state": "failed"},
                "cause": {
                    "message": "card declined",
                    "metadata": {"type": "temporal.api.failure.v1.Failure"},
                    "details": {
                        "applicationFailureInfo": {"type": "CardDeclined", "nonRetryable": True}
                    },
                },
            }
        ),
    ),
    Clause(
        id="error/unexpected",
        says="an unexpected exception is 500 INTERNAL, and its text stays inside",
        request=post("/services/inline/error", "unexpected"),
        status=500,
        headers={"Nexus-Request-Retryable": None},
        body=failure("INTERNAL", "internal error", hidden=["swordfish", "RuntimeError"]),
    ),
    Clause(
        id="error/unexpected-threaded",
        says="on a thread too",
        request=post("/services/inline/threaded-error", "unexpected"),
        status=500,
        body=failure("INTERNAL", "internal error", hidden=["swordfish", "RuntimeError"]),
    ),
]
CLAUSES += [
    Clause(
        id=f"error/{type.lower()}",
        says="each predefined handler error has its status, and retries as the table says",
        request=post("/services/inline/error", type),
        status=status,
        headers={
            "Content-Type": "application/json",
            "Nexus-Request-Retryable": None,
            "Nexus-Operation-State": None,
            "Retry-After": DIGITS if status in (429, 503) else None,
            "WWW-Authenticate": re.compile("Bearer.*") if status == 401 else None,
        },
        body=failure(type, "not today"),
    )
    for type, status in STATUS.items()
]
CLAUSES += [
    Clause(
        id=f"error/{type.lower()}/{override}",
        says="an override is in the details, and in the deprecated header",
        request=post("/services/inline/error", f"{type}:{override}"),
        status=STATUS[type],
        headers={"Nexus-Request-Retryable": "true" if override == "retry" else "false"},
        body=failure(type, "not today", retryable=override == "retry"),
    )
    for type in ("BAD_REQUEST", "INTERNAL", "UNAVAILABLE")
    for override in ("retry", "no-retry")
]


@scenario(CLAUSES, "200/links", "200 carries the handler's links, readable to both kinds of reader")
async def inline_links(world: World) -> None:
    caller = {"Nexus-Link": "<caller://mine>; type=T"}
    answer = await world.start("inline/linked", None, caller)
    assert answer.get_all("nexus-link") == [ENCODED_LINK, '<http://h.example/2>; type="T2"']
    assert "%2C" not in HANDLERS_LINK.url


@scenario(CLAUSES, "201/links", "201 carries the handler's links, never the caller's")
async def links_of_started(world: World) -> None:
    caller = {"Nexus-Link": "<caller://mine>; type=T"}
    answer = await world.start("custom/elsewhere", {"token": world.name}, caller)
    assert answer.status == 201
    assert answer.get_all("nexus-link") == [ENCODED_LINK]


@scenario(CLAUSES, "201/token", "a token is unguessable and fits into a header and a path")
async def tokens(world: World) -> None:
    tokens = [await world.started("durable/forever") for _ in range(3)]
    assert len({token[-20:] for token in tokens}) == 3
    for token in tokens:
        assert re.fullmatch("[A-Za-z0-9_-]{22,100}", token)


@scenario(CLAUSES, "201/info-only", "the body of 201 is token and state, nothing else")
async def info_only(world: World) -> None:
    answer = await world.start("durable/forever")
    assert answer.json().keys() == {"token", "state"}


@scenario(CLAUSES, "201/too-large-result", "a durable operation whose result is too large fails")
async def too_large_result(world: World) -> None:
    token = await world.started("durable/sized", 2 * MEBIBYTE + 1)
    ended = await world.result("durable/sized", token)
    assert ended.status == 424
    assert str(2 * MEBIBYTE) in ended.json()["message"]


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
