"""Who may call: keys and principals, and nobody but this machine without them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import create_app
from gateway.api_keys import ApiKeys
from gateway.roles import Role
from tests.conformance.clause import Clause, Row, Table, failure, json_has, json_value, row_id
from tests.conformance.conftest import tracebacks
from tests.conformance.services import make_services
from tests.conformance.world import JSON, World, get, post
from tests.support.callback_receiver import CallbackReceiver
from tests.support.gateway_process import GatewayNotStarted, GatewayProcess, served
from tests.support.raw_http import request

pytestmark = pytest.mark.anyio

SERVICES = "tests.conformance.services:services"
ECHO = "/services/inline/echo"


def from_host(host: str, **headers: str) -> bytes:
    return request("POST", ECHO, {**JSON, **headers}, b"1", host=host)


# ---------------------------------------------------------------- without keys

CLAUSES: Table = [
    Clause(
        id=f"access/own-host/{host}",
        says="without keys this machine may call, by any of its own names",
        request=from_host(host),
        status=200,
        body=json_value(1),
    )
    for host in ("127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:80", "127.1.2.3")
]
CLAUSES += [
    Clause(
        id=f"access/other-host/{number}",
        says="a name that only resolves to it is refused (DNS rebinding)",
        request=from_host(host),
        status=403,
        body=failure("UNAUTHORIZED", "--public-url"),
    )
    for number, host in enumerate(
        ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::1")
    )
]
CLAUSES += [
    Clause(
        id=f"access/other-origin/{number}",
        says="and so is another web page",
        request=from_host("127.0.0.1", Origin=origin),
        status=403,
        body=failure("UNAUTHORIZED", "web pages"),
    )
    for number, origin in enumerate(
        ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", "localhost")
    )
]
CLAUSES += [
    Clause(
        id="access/own-origin",
        says="a page of this machine's may call",
        request=from_host("127.0.0.1", Origin="http://localhost:8080"),
        status=200,
    ),
    Clause(
        id="access/unknown-key",
        says="a wrong key is 401, also where none is needed",
        request=post(ECHO, 1, {"Authorization": "Bearer nxk_wrong"}),
        status=401,
        headers={"WWW-Authenticate": "Bearer"},
        body=failure("UNAUTHENTICATED"),
    ),
    Clause(
        id="access/checked-before-the-path",
        says="who may not call learns nothing of what there is",
        request=request("POST", "/services/nobody/%zz", host="evil.example"),
        status=403,
        body=failure("UNAUTHORIZED"),
    ),
    Clause(
        id="access/large-body-refused",
        says="the refusal arrives although much was sent",
        request=request("POST", ECHO, JSON, b"x" * 6_000_000, host="evil.example"),
        status=403,
        body=failure("UNAUTHORIZED"),
    ),
    Clause(
        id="access/api",
        says="the operators' API is guarded alike",
        request=request("GET", "/api/v1/operations", host="evil.example"),
        status=403,
        body=failure("UNAUTHORIZED"),
    ),
]


@pytest.mark.parametrize("row", CLAUSES, ids=row_id)
async def test_clause(world: World, row: Row) -> None:
    await row.check(world)


# ---------------------------------------------------------------- with keys


@dataclass(frozen=True)
class Keyed:
    process: GatewayProcess
    keys: ApiKeys
    alice: str
    bob: str
    operator: str


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    database = tmp_path_factory.mktemp("keyed") / "nexus.db"
    keys = ApiKeys(f"sqlite:///{database}")
    secrets = [
        keys.create(name, role)[1]
        for name, role in (("alice", Role.CALL), ("bob", Role.CALL), ("ops", Role.OPERATE))
    ]
    # Beyond loopback: the keys allow that.
    options = ("--host", "0.0.0.0", "--log-format", "json", "--allow-private-callbacks")
    with GatewayProcess.start(SERVICES, database, *options) as process:
        yield Keyed(process, keys, *secrets)
    assert tracebacks(process.log()) == []


@pytest.fixture
async def guarded(keyed: Keyed, receiver: CallbackReceiver) -> World:
    return World(f"http://127.0.0.1:{keyed.process.port}", receiver)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer nxk_x", "Basic YTpi", "Bearer \xff\xfe"],
)
async def test_without_a_valid_key_401(guarded: World, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await guarded.start("inline/echo", 1, headers)
    assert answer.status == 401
    assert answer.get("www-authenticate") == "Bearer"
    failure("UNAUTHENTICATED")(answer.body)


async def test_with_a_key_from_anywhere(guarded: World, keyed: Keyed) -> None:
    headers = {**JSON, **bearer(keyed.alice), "Origin": "https://shop.example"}
    raw = request("POST", ECHO, headers, b"1", host="gateway.example")
    assert (await guarded.exchange(raw)).json() == 1
    lower = {"authorization": f"bearer {keyed.alice}"}
    assert (await guarded.start("inline/echo", 1, lower)).status == 200


async def test_a_handler_sees_the_principal_and_never_the_key(guarded: World, keyed: Keyed) -> None:
    headers = {**bearer(keyed.alice), "Prefer": "wait=10"}
    answer = await guarded.start("durable/context", None, headers)
    json_has(caller="alice")(answer.body)
    assert keyed.alice.encode() not in answer.body


async def test_anothers_operation_is_unknown(guarded: World, keyed: Keyed) -> None:
    token = await guarded.started("durable/forever", None, bearer(keyed.alice))
    own = {"Nexus-Operation-Token": token, **bearer(keyed.bob)}
    for raw in (
        request("POST", "/services/durable/forever/cancel", own),
        request("POST", f"/services/durable/forever/{token}/cancel", bearer(keyed.bob)),
        get("/services/durable/forever/result?wait=10s", own),
        get("/services/durable/forever", own),
    ):
        answer = await guarded.exchange(raw)
        unknown = await guarded.exchange(raw.replace(token.encode(), b"nobody's"))
        assert answer.status == 404
        failure("NOT_FOUND")(answer.body)
        assert answer.body == unknown.body
    mine = {"Nexus-Operation-Token": token, **bearer(keyed.alice)}
    raw = request("POST", "/services/durable/forever/cancel", mine)
    assert (await guarded.exchange(raw)).status == 202


async def test_a_request_id_is_the_principals_own(guarded: World, keyed: Keyed) -> None:
    id = {"Nexus-Request-Id": guarded.name}
    first = await guarded.started("durable/forever", 1, {**id, **bearer(keyed.alice)})
    other = await guarded.started("durable/forever", 2, {**id, **bearer(keyed.bob)})
    again = await guarded.started("durable/forever", 1, {**id, **bearer(keyed.alice)})
    assert first == again != other


async def test_a_principal_may_have_several_keys(guarded: World, keyed: Keyed) -> None:
    id = {"Nexus-Request-Id": guarded.name}
    _, second = keyed.keys.create("alice", Role.CALL)
    first = await guarded.started("durable/forever", 1, {**id, **bearer(keyed.alice)})
    assert await guarded.started("durable/forever", 1, {**id, **bearer(second)}) == first


async def test_a_revoked_key_is_refused_within_a_second(guarded: World, keyed: Keyed) -> None:
    key, secret = keyed.keys.create("carol", Role.CALL)
    assert (await guarded.start("inline/echo", 1, bearer(secret))).status == 200
    assert keyed.keys.revoke(key.id)
    revoked_at = time.monotonic()
    while (await guarded.start("inline/echo", 1, bearer(secret))).status == 200:
        assert time.monotonic() - revoked_at < 5


@pytest.mark.parametrize("of", ["operations", "callbacks", "destinations"])
async def test_the_operators_api_needs_the_role(of: str, guarded: World, keyed: Keyed) -> None:
    target = f"/api/v1/{of}"
    assert (await guarded.exchange(get(target))).status == 401
    refused = await guarded.exchange(get(target, bearer(keyed.alice)))
    assert refused.status == 403
    failure("UNAUTHORIZED", "operate")(refused.body)
    assert (await guarded.exchange(get(target, bearer(keyed.operator)))).status == 200


@pytest.mark.parametrize("verb", ["callbacks/1/replay", "callbacks/replay", "destinations/disable"])
async def test_a_caller_pulls_no_levers(verb: str, guarded: World, keyed: Keyed) -> None:
    raw = request("POST", f"/api/v1/{verb}", {**JSON, **bearer(keyed.alice)}, b'{"all": true}')
    refused = await guarded.exchange(raw)
    assert refused.status == 403
    failure("UNAUTHORIZED", "operate")(refused.body)


async def test_health_needs_no_key(guarded: World) -> None:
    assert (await guarded.exchange(get("/healthz"))).status == 200
    assert (await guarded.exchange(get("/readyz"))).status == 200


# ---------------------------------------------------------------- beyond this machine


async def test_serving_others_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatewayNotStarted) as error:
        GatewayProcess.start(SERVICES, tmp_path / "nexus.db", "--host", "0.0.0.0")
    assert "exit code 1" in str(error.value)
    assert "nexus-gateway keys create" in str(error.value)
    assert "Traceback" not in str(error.value)


async def test_serving_others_unauthenticated_must_be_said(world: World, tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--allow-unauthenticated")
    with GatewayProcess.start(SERVICES, tmp_path / "nexus.db", *options) as process:
        world.base_url = f"http://127.0.0.1:{process.port}"
        assert (await world.exchange(from_host("gateway.example"))).status == 200


async def test_the_public_url_names_the_gateway(world: World, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/nexus.db"
    app = create_app(make_services(), database=database, public_url="https://nexus.example:8443/")
    async with served(app) as here:
        world.base_url = here.base_url
        assert (await world.exchange(from_host("nexus.example:8443"))).status == 200
        assert (await world.exchange(from_host("other.example"))).status == 403
