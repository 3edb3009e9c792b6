"""Which operation a URL names. Spec: SPEC.md#operation-addressability."""

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
from tests.conformance.world import World, get, post
from tests.support.raw_http import request

pytestmark = pytest.mark.anyio

LONG = "n" * 1001

CLAUSES: Table = [
    Clause(
        id="address/start",
        says="POST {endpoint}/{service}/{operation} starts an operation",
        request=post("/services/inline/echo", "hi"),
        status=200,
        body=json_value("hi"),
    ),
    Clause(
        id="address/default-endpoint-by-name",
        says="the endpoint of /services is the one named default",
        request=post("/nexus/endpoints/default/services/inline/echo", "hi"),
        status=200,
        body=json_value("hi"),
    ),
    Clause(
        id="address/named-endpoint",
        says="another endpoint has services of its own",
        request=post("/nexus/endpoints/other/services/inline/echo", "hi"),
        status=200,
        body=json_value({"other": "hi"}),
    ),
    Clause(
        id="address/endpoint-name-is-escaped",
        says="an endpoint's name may hold slashes and spaces, percent-encoded",
        request=post("/nexus/endpoints/team%2Feu%201/services/durable/echo", 1),
        status=201,
        body=json_has(state="running"),
    ),
    Clause(
        id="address/names-may-hold-slashes",
        says="the raw path is split before it is unescaped",
        request=post("/services/pay%2Fments%20v1/charge%2Fcancel", None),
        status=200,
        body=json_value("charge/cancel"),
    ),
    Clause(
        id="address/lower-case-escapes",
        says="hex digits of escapes count in both cases",
        request=post("/services/pay%2fments%20v1/charge%2fcancel", None),
        status=200,
        body=json_value("charge/cancel"),
    ),
    Clause(
        id="address/plus-is-plus",
        says="+ in a path is a plus, not a space",
        request=post("/services/pay%2Fments%20v1/a+b", None),
        status=200,
        body=json_value("a+b"),
    ),
    Clause(
        id="address/escaped-plus",
        says="an escaped plus is the same plus",
        request=post("/services/pay%2Fments%20v1/a%2Bb", None),
        status=200,
        body=json_value("a+b"),
    ),
    Clause(
        id="address/any-characters",
        says="a name holds any characters, as UTF-8",
        request=post("/services/pay%2Fments%20v1/gr%C3%BC%C3%9Fe%3Fx%3D1%232%2541", None),
        status=200,
        body=json_value("grüße?x=1#2%41"),
    ),
    Clause(
        id="address/operation-named-cancel",
        says="an operation may be called cancel",
        request=post("/services/pay%2Fments%20v1/cancel", None),
        status=201,
        body=json_has(state="running"),
    ),
    Clause(
        id="address/names-are-case-sensitive",
        says="names are compared as they are",
        request=post("/services/Inline/echo", 1),
        status=404,
        body=failure("NOT_FOUND", "'Inline'"),
    ),
    Clause(
        id="address/unknown-service",
        says="an unknown service is 404 NOT_FOUND, typed, and named",
        request=post("/services/nobody/echo", 1),
        status=404,
        body=failure("NOT_FOUND", "'nobody'", "'default'"),
    ),
    Clause(
        id="address/unknown-operation",
        says="an unknown operation is 404 NOT_FOUND, typed, and named",
        request=post("/services/inline/nothing-here", 1),
        status=404,
        body=failure("NOT_FOUND", "'nothing-here'"),
    ),
    Clause(
        id="address/unknown-endpoint",
        says="an unknown endpoint is 404 NOT_FOUND, typed, and named",
        request=post("/nexus/endpoints/nowhere/services/inline/echo", 1),
        status=404,
        body=failure("NOT_FOUND", "'nowhere'"),
    ),
    Clause(
        id="address/service-of-another-endpoint",
        says="a service is found at its own endpoint only",
        request=post("/nexus/endpoints/other/services/durable/echo", 1),
        status=404,
        body=failure("NOT_FOUND", "'durable'"),
    ),
    Clause(
        id="address/empty-endpoint",
        says="an endpoint without a name is unknown",
        request=post("/nexus/endpoints//services/inline/echo", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/endpoint-broken-escape",
        says="a broken escape in the endpoint's name is 400",
        request=post("/nexus/endpoints/o%zzther/services/inline/echo", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="address/endpoint-invalid-utf8",
        says="an endpoint's name is UTF-8",
        request=post("/nexus/endpoints/%ff/services/inline/echo", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="address/empty-service",
        says="a service name must not be empty",
        request=post("/services//echo", 1),
        status=400,
        body=failure("BAD_REQUEST", "empty"),
    ),
    Clause(
        id="address/empty-operation",
        says="an operation name must not be empty",
        request=post("/services/inline/", 1),
        status=400,
        body=failure("BAD_REQUEST", "empty"),
    ),
    Clause(
        id="address/no-operation",
        says="one segment is no operation",
        request=post("/services/inline", 1),
        status=400,
        body=failure("BAD_REQUEST", "{service}/{operation}"),
    ),
    Clause(
        id="address/nothing",
        says="the endpoint alone is no operation",
        request=post("/services/", 1),
        status=400,
        body=failure("BAD_REQUEST", "{service}/{operation}"),
    ),
    Clause(
        id="address/endpoint-alone",
        says="without a trailing slash neither",
        request=post("/services", 1),
        status=400,
        body=failure("BAD_REQUEST", "{service}/{operation}"),
    ),
    Clause(
        id="address/too-many-segments",
        says="more segments than any form has are 400",
        request=post("/services/inline/echo/a/b/c", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="address/unknown-action",
        says="an unknown third segment is 400",
        request=post("/services/inline/echo/restart", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="address/trailing-slash",
        says="a trailing slash is an empty segment, and no redirect",
        request=post("/services/inline/echo/", 1),
        status=400,
        headers={"Location": None},
        body=failure("BAD_REQUEST", "empty"),
    ),
    Clause(
        id="address/broken-escape",
        says="a broken escape is 400",
        request=post("/services/in%zzline/echo", 1),
        status=400,
        body=failure("BAD_REQUEST", "%"),
    ),
    Clause(
        id="address/cut-escape",
        says="an escape that is cut off is 400",
        request=post("/services/inline/echo%4", 1),
        status=400,
        body=failure("BAD_REQUEST", "%"),
    ),
    Clause(
        id="address/invalid-utf8",
        says="an escape that is not UTF-8 is 400",
        request=post("/services/inline/%ff%fe", 1),
        status=400,
        body=failure("BAD_REQUEST", "UTF-8"),
    ),
    Clause(
        id="address/overlong-utf8",
        says="an overlong form of a slash is not UTF-8",
        request=post("/services/inline/..%c0%af", 1),
        status=400,
        body=failure("BAD_REQUEST", "UTF-8"),
    ),
    Clause(
        id="address/surrogate",
        says="half a surrogate pair is not UTF-8",
        request=post("/services/inline/%ed%a0%80", 1),
        status=400,
        body=failure("BAD_REQUEST", "UTF-8"),
    ),
    Clause(
        id="address/nul",
        says="NUL in a name is an unknown name",
        request=post("/services/inline/echo%00", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/escaped-dots",
        says="dot segments are unknown names and never resolved",
        request=post("/services/nobody/%2e%2e", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/dots",
        says="nor when they are sent literally",
        request=post("/services/x/../inline/echo", 1),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="address/service-name-too-long",
        says="a service name has at most 1000 bytes",
        request=post(f"/services/{LONG}/echo", 1),
        status=400,
        body=failure("BAD_REQUEST", "service", "1000"),
    ),
    Clause(
        id="address/operation-name-too-long",
        says="an operation name has at most 1000 bytes",
        request=post(f"/services/inline/{LONG}", 1),
        status=400,
        body=failure("BAD_REQUEST", "operation", "1000"),
    ),
    Clause(
        id="address/longest-name",
        says="1000 bytes are allowed, however they are escaped",
        request=post(f"/services/inline/{'%6e' * 1000}", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/absolute-form",
        says="a request target in absolute form (RFC 9112) names the same operation",
        request=post("http://127.0.0.1/services/inline/echo", "hi"),
        status=200,
        body=json_value("hi"),
    ),
    Clause(
        id="address/prefix-lookalike",
        says="a path that only begins like an endpoint is none",
        request=post("/services-of-others/inline/echo", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/nowhere",
        says="a path outside of all endpoints is a typed 404 too",
        request=post("/inline/echo", 1),
        status=404,
        body=failure("NOT_FOUND", "/services/{service}/{operation}"),
    ),
    Clause(
        id="address/half-an-endpoint",
        says="a registry path without services is a typed 404",
        request=post("/nexus/endpoints/other", 1),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/unknown-service-get",
        says="a GET of an unknown service is 404 too",
        request=get("/services/nobody/echo", {"Nexus-Operation-Token": "t"}),
        status=404,
        body=failure("NOT_FOUND"),
    ),
    Clause(
        id="address/unknown-service-cancel",
        says="and so is a cancel",
        request=request("POST", "/services/nobody/echo/cancel", {"Nexus-Operation-Token": "t"}),
        status=404,
        body=failure("NOT_FOUND"),
    ),
]


@scenario(CLAUSES, "address/cancel-of-operation-named-cancel", "its cancel is one segment more")
async def cancel_of_cancel(world: World) -> None:
    path = "pay%2Fments%20v1/cancel"
    token = await world.started(path)
    assert (await world.cancel(path, token)).status == 202
    ended = await world.result(path, token)
    assert ended.status == 424
    operation_error("canceled", "operation canceled")(ended.body)


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
