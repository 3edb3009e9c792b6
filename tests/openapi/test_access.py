from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from examples.orders import services
from gateway import create_app
from gateway.api_keys import ApiKeys
from gateway.roles import Role
from tests.openapi.contract import Documented, documented, load_contract
from tests.support.gateway_process import served

pytestmark = pytest.mark.anyio

CONTRACT = load_contract()
DOCUMENTED = list(documented(CONTRACT))


class KeyedGateway:
    """A gateway with an API key of each role."""

    def __init__(self, client: httpx.AsyncClient, keys: dict[Role, str]) -> None:
        self._client = client
        self._keys = keys

    async def status(self, operation: Documented, role: Role | None) -> int:
        headers = {} if role is None else {"Authorization": f"Bearer {self._keys[role]}"}
        path = operation.path_with_examples()
        return (await self._client.request(operation.method, path, headers=headers)).status_code


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[KeyedGateway]:
    database = tmp_path / "nexus.db"
    keys = {role: ApiKeys(f"sqlite:///{database}").create(role.value, role)[1] for role in Role}
    app = create_app(services, endpoints={"shop": services}, database=f"sqlite:///{database}")
    async with served(app) as gateway, httpx.AsyncClient(base_url=gateway.base_url) as client:
        yield KeyedGateway(client, keys)


async def test_a_key_is_needed_where_the_file_says_so_and_its_role_is_enough(
    keyed: KeyedGateway,
) -> None:
    for operation in DOCUMENTED:
        security = operation.definition.get("security", CONTRACT["security"])
        statuses = [await keyed.status(operation, role) for role in (None, Role.CALL, Role.OPERATE)]
        refused = [status in (401, 403) for status in statuses]
        match security:
            case []:
                assert refused == [False, False, False], operation.id
            case [{"apiKey": ["call"]}, {}]:
                assert (statuses[0], refused) == (401, [True, False, False]), operation.id
            case [{"apiKey": ["operate"]}, {}]:
                assert (statuses[:2], refused) == ([401, 403], [True, True, False]), operation.id
            case [{"callbackToken": []}]:
                assert statuses == [401, 401, 401], operation.id
            case _:
                raise AssertionError(f"{operation.id}: security of another kind: {security}")


async def test_the_statuses_of_a_missing_key_are_in_the_file_where_one_is_needed() -> None:
    for operation in DOCUMENTED:
        security = operation.definition.get("security", CONTRACT["security"])
        assert isinstance(security, list), operation.id
        needed = any("apiKey" in scheme for scheme in security)
        assert ({"401", "403"} <= set(operation.definition["responses"])) is needed, operation.id
