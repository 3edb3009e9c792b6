"""What a caller is told while PostgreSQL is away."""

from pathlib import Path

import httpx
import pytest

from gateway import create_app
from tests.gateway.services import services
from tests.support.eventually import eventually
from tests.support.gateway_process import served
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio


async def test_all_may_be_tried_again_while_the_database_is_away(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    app = create_app(services, database=postgres_url)
    async with served(app) as here, httpx.AsyncClient(base_url=here.base_url) as client:
        paths = ("/readyz", "/services/s/o?token=t", "/api/v1/operations")
        assert (await client.get("/readyz")).status_code == 200
        postgres.stop()
        try:
            answers = [await client.get(path) for path in paths]
        finally:
            postgres.resume()
        assert [answer.status_code for answer in answers] == [503] * 3
        assert {answer.json()["details"]["type"] for answer in answers} == {"UNAVAILABLE"}
        assert (await client.get("/healthz")).status_code == 200

        async def is_ready() -> bool | None:
            return (await client.get("/readyz")).status_code == 200 or None

        await eventually(is_ready)
