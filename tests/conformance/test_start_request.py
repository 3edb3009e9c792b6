"""What a start brings: headers, durations, links, input. Spec: SPEC.md#start-operation."""

import json

import pytest

from tests.conformance.clause import (
    Clause,
    Row,
    Table,
    failure,
    json_has,
    json_value,
    row_id,
    scenario,
)
from tests.conformance.world import JSON, World, post
from tests.support.raw_http import chunked, request

pytestmark = pytest.mark.anyio

LIMIT = 2 * 1024 * 1024

WORKFLOW_LINK = (
    "temporal:///namespaces/default/workflows/w-slow/01a2/history"
    "?eventID=5&eventType=NexusOperationScheduled&referenceType=EventReference"
)
WORKFLOW_TYPE = "temporal.api.common.v1.Link.WorkflowEvent"


def context(*headers: tuple[str, str], query: str = "") -> bytes:
    return post(f"/services/inline/context{query}", None, headers)


def link_row(id: str, says: str, values: list[str], *expected: tuple[str, str]) -> Clause:
    return Clause(
        id=f"links/{id}",
        says=says,
        request=context(*(("Nexus-Link", value) for value in values)),
        status=200,
        body=json_has(links=[list(link) for link in expected]),
    )


def bad_link(id: str, says: str, value: str) -> Clause:
    return Clause(
        id=f"links/{id}",
        says=says,
        request=context(("Nexus-Link", value)),
        status=400,
        body=failure("BAD_REQUEST", "Nexus-Link"),
    )


DURATIONS: Table = [
    Clause(
        id=f"duration/{header.lower()}/{text.strip() or 'empty'}".replace(" ", "_"),
        says="a number and a unit of ms, s or m, decimals allowed",
        request=context((header, text)),
        status=200,
    )
    for header in ("Request-Timeout", "Operation-Timeout")
    for text in ("9999ms", "10s", "2m", "1.5s", "0.25m", "0s", "0ms", "00010s", "1000000m")
]
DURATIONS += [
    Clause(
        id=f"duration/{header.lower()}/bad/{number}",
        says="anything else is 400",
        request=context((header, text)),
        status=400,
        body=failure("BAD_REQUEST", header.lower(), "expected"),
    )
    for header in ("Request-Timeout", "Operation-Timeout")
    for number, text in enumerate(
        (
            *("", "10", "s", "10 s", "+1s", "-1s", "1h", "1us", "1e3s", ".5s", "1.s", "10S"),
            *("1s1s", "1,5s", "inf", "nan", "9" * 400 + "s", "99999999999999999s", "1s,2s"),
            "\xb2s",
        )
    )
]

LINKS: Table = [
    link_row("none", "links are optional", []),
    link_row(
        "workflow",
        "a link is <url>; type",
        [f'<{WORKFLOW_LINK}>; type="{WORKFLOW_TYPE}"'],
        (WORKFLOW_LINK, WORKFLOW_TYPE),
    ),
    link_row("unquoted", "the quotes are optional", ["<a://b>; type=x.Y"], ("a://b", "x.Y")),
    link_row(
        "several-in-one",
        "a header may hold several links",
        ['<a://1>; type="T1", <a://2>; type="T2"'],
        ("a://1", "T1"),
        ("a://2", "T2"),
    ),
    link_row(
        "several-headers",
        "and there may be several headers",
        ['<a://1>; type="T1"', '<a://2>; type="T2"'],
        ("a://1", "T1"),
        ("a://2", "T2"),
    ),
    link_row(
        "comma-in-url",
        "a comma inside <> belongs to the URL",
        ['<a://b?c=1,2;d=3>; type="T"'],
        ("a://b?c=1,2;d=3", "T"),
    ),
    link_row(
        "other-parameters",
        "other parameters are ignored",
        ['<a://b>; rel="next"; type="T"; title=x'],
        ("a://b", "T"),
    ),
    link_row("ten", "ten links are allowed", ['<a://b>; type="T"'] * 10, *[("a://b", "T")] * 10),
    bad_link("no-type", "a type is required", "<a://b>"),
    bad_link("empty-type", "which is not empty", '<a://b>; type=""'),
    bad_link("type-characters", "and of letters, digits, _ . /", '<a://b>; type="a b"'),
    bad_link("upper-case-type", "type is written in lower case", '<a://b>; Type="T"'),
    bad_link("empty", "an empty header is no link", ""),
    bad_link("trailing-semicolon", "nothing may be missing after ;", '<a://b>; type="T";'),
    bad_link("no-equals", "a parameter has a value", '<a://b>; type="T"; rel'),
    bad_link("no-brackets", "the URL stands in <>", 'a://b; type="T"'),
    bad_link("unclosed", "closed ones", '<a://b; type="T"'),
    Clause(
        id="links/eleven",
        says="eleven links are too many",
        request=context(("Nexus-Link", ", ".join(['<a://b>; type="T"'] * 11))),
        status=400,
        body=failure("BAD_REQUEST", "10 links"),
    ),
    Clause(
        id="links/too-long",
        says="a link has at most 4000 bytes",
        request=context(("Nexus-Link", f"<a://{'b' * 4000}>; type=T")),
        status=400,
        body=failure("BAD_REQUEST", "4000"),
    ),
]

HEADERS: Table = [
    Clause(
        id="header/user",
        says="any other header is the caller's own and reaches the handler in lower case",
        request=context(("X-Tenant", "blue"), ("traceparent", "00-1-2-01")),
        status=200,
        body=lambda body: json_has(**{"x-tenant": "blue", "traceparent": "00-1-2-01"})(
            json.dumps(json.loads(body)["headers"]).encode()
        ),
    ),
    Clause(
        id="header/first-wins",
        says="of a repeated header the first value counts",
        request=context(("Nexus-Request-Id", "first"), ("nexus-request-id", "second")),
        status=200,
        body=json_has(request_id="first"),
    ),
    Clause(
        id="header/names-in-any-case",
        says="header names are case-insensitive",
        request=context(("NEXUS-REQUEST-ID", "id"), ("rEqUeSt-TiMeOuT", "5s")),
        status=200,
        body=json_has(request_id="id", has_deadline=True),
    ),
    Clause(
        id="header/request-id-any-string",
        says="a request id is any string",
        request=context(("Nexus-Request-Id", "not a UUID; at all!")),
        status=200,
        body=json_has(request_id="not a UUID; at all!"),
    ),
    Clause(
        id="header/request-id-too-long",
        says="of bounded length",
        request=context(("Nexus-Request-Id", "r" * 1001)),
        status=400,
        body=failure("BAD_REQUEST", "Nexus-Request-Id"),
    ),
    Clause(
        id="header/no-request-timeout",
        says="Request-Timeout is optional",
        request=context(),
        status=200,
        body=json_has(has_deadline=False),
    ),
    Clause(
        id="header/zero-request-timeout",
        says="zero means none",
        request=context(("Request-Timeout", "0s")),
        status=200,
        body=json_has(has_deadline=False),
    ),
    Clause(
        id="header/user-headers-8192",
        says="user headers count up to 8192 bytes, names included",
        request=context(("X-A", "a" * 4000), ("X-B", "b" * 4100)),
        status=200,
    ),
    Clause(
        id="header/user-headers-too-large",
        says="and no further",
        request=context(("X-A", "a" * 4100), ("X-B", "b" * 4100)),
        status=400,
        body=failure("BAD_REQUEST", "8192"),
    ),
    Clause(
        id="header/protocol-headers-do-not-count",
        says="the protocol's own headers are not the user's: 9.9 kB in all are seen",
        request=context(
            ("X-A", "a" * 7000),
            ("Nexus-Callback-Token", "t" * 2000),
            ("Nexus-Link", f"<a://{'b' * 900}>; type=T"),
        ),
        status=200,
    ),
    Clause(
        id="header/latin-1",
        says="a header's value may hold bytes beyond ASCII",
        request=context(("X-Name", "gr\xc3\xbc\xc3\x9fe"), ("Nexus-Request-Id", "\xe9\xff")),
        status=200,
        body=json_has(request_id="\xe9\xff"),
    ),
    Clause(
        id="header/failure-support",
        says="Temporal-Nexus-Failure-Support changes nothing",
        request=context(("Temporal-Nexus-Failure-Support", "true")),
        status=200,
    ),
]

CALLBACKS: Table = [
    Clause(
        id="callback/optional",
        says="a callback is optional",
        request=context(),
        status=200,
        body=json_has(callback_url=None, callback_headers={}),
    ),
    Clause(
        id="callback/empty",
        says="an empty one is none",
        request=context(query="?callback="),
        status=200,
        body=json_has(callback_url=None),
    ),
    Clause(
        id="callback/prefix-stripped",
        says="Nexus-Callback- headers are the callback's, their prefix stripped",
        request=context(
            ("Nexus-Callback-Token", "t0k"),
            ("nexus-callback-x-y", "z"),
            query="?callback=http%3A%2F%2F127.0.0.1%3A9999%2Fcb%3Fa%3D1%26b%3D%252F",
        ),
        status=200,
        body=json_has(
            callback_url="http://127.0.0.1:9999/cb?a=1&b=%2F",
            callback_headers={"token": "t0k", "x-y": "z"},
        ),
    ),
    Clause(
        id="callback/escaped-parameter-name",
        says="a query parameter's name may be escaped as well",
        request=context(query="?c%61llback=http%3A%2F%2F127.0.0.1%3A9999%2F"),
        status=200,
        body=json_has(callback_url="http://127.0.0.1:9999/"),
    ),
    Clause(
        id="callback/first-wins",
        says="of two callbacks the first counts",
        request=context(query="?callback=http://127.0.0.1:9999/1&callback=http://127.0.0.1:9999/2"),
        status=200,
        body=json_has(callback_url="http://127.0.0.1:9999/1"),
    ),
    Clause(
        id="callback/token-not-required",
        says="no particular callback header is required",
        request=context(query="?callback=http%3A%2F%2F127.0.0.1%3A9999%2F"),
        status=200,
        body=json_has(callback_headers={}),
    ),
    Clause(
        id="callback/too-long",
        says="a callback URL has at most 1000 bytes",
        request=context(query=f"?callback=http://127.0.0.1:9999/{'x' * 1000}"),
        status=400,
        body=failure("BAD_REQUEST", "1000"),
    ),
    Clause(
        id="callback/headers-too-large",
        says="callback headers have at most 8192 bytes",
        request=context(
            ("Nexus-Callback-A", "a" * 4100),
            ("Nexus-Callback-B", "a" * 4100),
            query="?callback=http://127.0.0.1:9999/",
        ),
        status=400,
        body=failure("BAD_REQUEST", "8192"),
    ),
    Clause(
        id="callback/broken-query",
        says="a query that is not percent-encoded UTF-8 is 400",
        request=context(query="?callback=http%3A%2F%2F%ff"),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
]
CALLBACKS += [
    Clause(
        id=f"callback/refused-url/{number}",
        says="a callback URL that may not or cannot be called is refused at the start",
        request=context(query=f"?callback={url}"),
        status=400,
        body=failure("BAD_REQUEST", "callback URL"),
    )
    for number, url in enumerate(
        (
            "ftp%3A%2F%2Fexample.com%2F",
            "%2Frelative",
            "javascript%3Aalert(1)",
            "http%3A%2F%2F",
            "http%3A%2F%2Fuser%3Apw%40example.com%2F",
            "http%3A%2F%2Fexample.com%2F%0d%0aX%3A%20y",
            "http%3A%2F%2Fexample.com%2F%20x",
            "http%3A%2F%2Fexample.com%2F%23fragment",
            "http%3A%2F%2Fexample.com%5C%40evil.example%2F",
            "http%3A%2F%2Fexample.com%3A22%2F",
            "http%3A%2F%2Fexample.com%3A99999%2F",
            "http%3A%2F%2F169.254.169.254%2Flatest",
            "http%3A%2F%2F2852039166%2F",
            "http%3A%2F%2F0xa9.0xfe.0xa9.0xfe%2F",
            "http%3A%2F%2F%5B%3A%3Affff%3A169.254.169.254%5D%2F",
            "http%3A%2F%2F%5Bfe80%3A%3A1%5D%2F",
            "http%3A%2F%2F%C3%BCml.example%2F",
            "http%3A%2F%2Fexample.com%2F%00",
        )
    )
]
CALLBACKS += [
    Clause(
        id=f"callback/refused-header/{name.lower()}",
        says="a callback header may not speak for the sender or the completion",
        request=context((f"Nexus-Callback-{name}", "x"), query="?callback={receiver}"),
        status=400,
        body=failure("BAD_REQUEST", "callback header"),
    )
    for name in (
        "Host",
        "Content-Type",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Expect",
        "Upgrade",
        "Proxy-Authorization",
        "Nexus-Link",
        "Nexus-Operation-State",
        "Nexus-Operation-Token",
        "Nexus_Operation_Token",
        "Webhook-Id",
    )
]

INPUTS: Table = [
    Clause(
        id="input/json",
        says="application/json is read by the operation's type",
        request=post("/services/inline/typed", {"name": "mug", "count": 2}),
        status=200,
        body=json_value({"name": "MUG", "count": 3}),
    ),
    Clause(
        id="input/json-charset",
        says="with parameters as well",
        request=post(
            "/services/inline/typed",
            body=b'{"name":"mug"}',
            headers={"Content-Type": "Application/JSON; charset=UTF-8"},
        ),
        status=200,
        body=json_value({"name": "MUG", "count": 2}),
    ),
    Clause(
        id="input/json-protobuf",
        says="parameters are parsed, never compared: the quoted protobuf form is JSON",
        request=post(
            "/services/inline/echo",
            body=b'{"a":1}',
            headers={"Content-Type": 'application/json; format=protobuf; message-type="a.B"'},
        ),
        status=200,
        body=json_value({"a": 1}),
    ),
    Clause(
        id="input/null",
        says="null is no Content-Type and no body",
        request=post("/services/inline/echo", body=b""),
        status=200,
        body=b"",
    ),
    Clause(
        id="input/null-typed",
        says="also where null is the input's type",
        request=post("/services/inline/nothing", body=b""),
        status=200,
        body=b"",
    ),
    Clause(
        id="input/null-without-length",
        says="no length is required of it",
        request=request("POST", "/services/inline/nothing", content_length=False),
        status=200,
        body=b"",
    ),
    Clause(
        id="input/null-chunked",
        says="it may come chunked",
        request=request(
            "POST",
            "/services/inline/nothing",
            {"Transfer-Encoding": "chunked"},
            chunked(),
            content_length=False,
        ),
        status=200,
        body=b"",
    ),
    Clause(
        id="input/null-json",
        says="JSON null is null",
        request=post("/services/inline/nothing", None),
        status=200,
        body=b"",
    ),
    Clause(
        id="input/null-where-needed",
        says="null for an operation that takes something is 400",
        request=post("/services/inline/typed", body=b""),
        status=400,
        body=failure("BAD_REQUEST", "Item"),
    ),
    Clause(
        id="input/chunked",
        says="a body may come chunked",
        request=request(
            "POST",
            "/services/inline/typed",
            {**JSON, "Transfer-Encoding": "chunked"},
            chunked(b'{"na', b'me":"m', b'ug"}'),
            content_length=False,
        ),
        status=200,
        body=json_value({"name": "MUG", "count": 2}),
    ),
    Clause(
        id="input/bytes",
        says="application/octet-stream is bytes",
        request=post(
            "/services/inline/bytes",
            body=b"\x00\xff\x01",
            headers={"Content-Type": "application/octet-stream"},
        ),
        status=200,
        headers={"Content-Type": "application/octet-stream"},
    ),
    Clause(
        id="input/broken-json",
        says="broken JSON is 400 and says where",
        request=post("/services/inline/typed", body=b'{"name":', headers=JSON),
        status=400,
        body=failure("BAD_REQUEST", "not valid JSON"),
    ),
    Clause(
        id="input/broken-json-untyped",
        says="for an operation that takes anything as well",
        request=post("/services/inline/echo", body=b"{'a': 1}", headers=JSON),
        status=400,
        body=failure("BAD_REQUEST", "not valid JSON"),
    ),
    Clause(
        id="input/empty-json",
        says="an empty body is not JSON",
        request=post("/services/inline/echo", body=b"", headers=JSON),
        status=400,
        body=failure("BAD_REQUEST", "empty"),
    ),
    Clause(
        id="input/nan",
        says="NaN is not JSON",
        request=post("/services/inline/echo", body=b"NaN", headers=JSON),
        status=400,
        body=failure("BAD_REQUEST", "not valid JSON"),
    ),
    Clause(
        id="input/invalid-utf8",
        says="invalid UTF-8 is 400",
        request=post("/services/inline/echo", body=b'"\xff"', headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/invalid-utf8-typed",
        says="also for a typed input",
        request=post("/services/inline/typed", body=b'{"name":"\xff"}', headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/lone-surrogate",
        says="half an escaped surrogate pair is 400, not an internal error",
        request=post("/services/inline/echo", body=b'"\\ud800"', headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/lone-surrogate-key",
        says="in a member's name too",
        request=post("/services/durable/echo", body=b'{"\\udfff": 1}', headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/nul",
        says="an escaped NUL is a character like any other",
        request=post("/services/inline/echo", "a\0b"),
        status=200,
        body=json_value("a\0b"),
    ),
    Clause(
        id="input/deep",
        says="JSON nested too deeply is 400",
        request=post("/services/inline/echo", body=b"[" * 100_000 + b"]" * 100_000, headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/huge-number",
        says="a number of thousands of digits is no internal error",
        request=post("/services/inline/echo", body=b"9" * 5000, headers=JSON),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/wrong-shape",
        says="an input that does not fit is 400 and says which field",
        request=post("/services/inline/typed", {"count": "many"}),
        status=400,
        body=failure("BAD_REQUEST", "name: ", "count: "),
    ),
    Clause(
        id="input/wrong-shape-durable",
        says="and a durable operation is not started with it",
        request=post("/services/durable/typed", {"count": "many"}),
        status=400,
        body=failure("BAD_REQUEST", "name: ", "count: "),
    ),
    Clause(
        id="input/curl-default",
        says="curl's default form type is refused with the remedy",
        request=post(
            "/services/inline/typed",
            body=b'{"name":"mug"}',
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
        status=400,
        body=failure("BAD_REQUEST", "curl", "Content-Type: application/json"),
    ),
    Clause(
        id="input/no-content-type",
        says="a body without a type is refused",
        request=post("/services/inline/typed", body=b'{"name":"mug"}'),
        status=400,
        body=failure("BAD_REQUEST", "Content-Type: application/json"),
    ),
    Clause(
        id="input/unknown-type",
        says="an unknown type is 400, not 415",
        request=post("/services/inline/typed", body=b"<a/>", headers={"Content-Type": "text/xml"}),
        status=400,
        body=failure("BAD_REQUEST", "text/xml"),
    ),
    Clause(
        id="input/malformed-type",
        says="a malformed type too",
        request=post("/services/inline/typed", body=b"{}", headers={"Content-Type": ";;="}),
        status=400,
        body=failure("BAD_REQUEST"),
    ),
    Clause(
        id="input/gzip",
        says="a compressed body is refused, not misread",
        request=post(
            "/services/inline/typed",
            body=b"\x1f\x8b\x08\x00",
            headers={**JSON, "Content-Encoding": "gzip"},
        ),
        status=400,
        body=failure("BAD_REQUEST", "gzip"),
    ),
    Clause(
        id="input/latin-1-charset",
        says="another charset than UTF-8 is refused",
        request=post(
            "/services/inline/echo",
            body=b'"\xe9"',
            headers={"Content-Type": "application/json; charset=latin-1"},
        ),
        status=400,
        body=failure("BAD_REQUEST", "charset"),
    ),
    Clause(
        id="input/largest",
        says="an input has up to 2 MiB",
        request=post("/services/inline/typed", {"name": "x" * (LIMIT - 40)}),
        status=200,
    ),
    Clause(
        id="input/too-large",
        says="a larger one is 400, not 413, and the answer arrives although more was sent",
        request=post("/services/inline/typed", {"name": "x" * LIMIT}),
        status=400,
        body=failure("BAD_REQUEST", str(LIMIT)),
    ),
    Clause(
        id="input/far-too-large",
        says="also when it is far too large",
        request=post("/services/inline/typed", {"name": "x" * (8 * LIMIT)}),
        status=400,
        body=failure("BAD_REQUEST", str(LIMIT)),
    ),
    Clause(
        id="input/far-too-large-unknown-operation",
        says="whatever it is that is refused",
        request=post("/services/inline/nowhere", "x" * (8 * LIMIT)),
        status=400,
        body=failure("BAD_REQUEST", str(LIMIT)),
    ),
    Clause(
        id="input/far-too-large-bad-path",
        says="a path that is refused before the body is read included",
        request=post("/services/inline/%zz", "x" * (8 * LIMIT)),
        status=400,
        body=failure("BAD_REQUEST", "%"),
    ),
    Clause(
        id="input/far-too-large-chunked",
        says="and chunked",
        request=request(
            "POST",
            "/services/inline/typed",
            {**JSON, "Transfer-Encoding": "chunked"},
            chunked(*[b"x" * 65536] * 200),
            content_length=False,
        ),
        status=400,
        body=failure("BAD_REQUEST", str(LIMIT)),
    ),
]


CLAUSES: Table = [*HEADERS, *DURATIONS, *LINKS, *CALLBACKS, *INPUTS]


@scenario(CLAUSES, "header/request-id-made", "where a caller sends no request id one is made")
async def request_id_made(world: World) -> None:
    made = {(await world.start("inline/context")).json()["request_id"] for _ in range(2)}
    assert len(made) == 2
    assert all(made)


@scenario(CLAUSES, "header/durable-context", "a durable handler gets what the caller sent")
async def durable_context(world: World) -> None:
    headers = {
        "X-Tenant": "blue",
        "Nexus-Request-Id": world.name,
        "Operation-Timeout": "1m",
        "Nexus-Link": f'<{WORKFLOW_LINK}>; type="{WORKFLOW_TYPE}"',
        "Nexus-Callback-Token": "secret",
        "Authorization": "Basic c2VjcmV0",
        "Cookie": "secret",
    }
    token = await world.started("durable/context", None, headers)
    seen = (await world.result("durable/context", token)).json()
    assert seen["headers"]["x-tenant"] == "blue"
    assert "secret" not in json.dumps(seen)
    assert seen["token"] == token
    assert seen["request_id"] == world.name
    assert seen["links"] == [[WORKFLOW_LINK, WORKFLOW_TYPE]]
    assert seen["has_deadline"]


@scenario(CLAUSES, "input/bytes-arrive", "bytes arrive as they are")
async def bytes_arrive(world: World) -> None:
    raw = post(
        "/services/inline/bytes",
        body=bytes(range(256)),
        headers={"Content-Type": "application/octet-stream"},
    )
    answer = await world.exchange(raw)
    assert answer.body == bytes(range(256))[::-1]


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)
