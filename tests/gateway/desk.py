"""A gateway as its operator reaches it, on a database of either kind."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from gateway import create_app
from gateway.settings import read_settings
from tests.gateway.services import LabHandler
from tests.support.eventually import eventually
from tests.support.gateway_process import Served, served


@dataclass
class Desk:
    """The operators' API of one gateway."""

    here: Served
    http: httpx.AsyncClient

    async def start(self, operation: str, value: object, url: str, token: str = "hush") -> str:
        """Start an operation with a callback and return its token."""
        answer = await self.http.post(
            f"/services/lab/{operation}",
            json=value,
            params={"callback": url},
            headers={"Nexus-Callback-Token": token},
        )
        return str(answer.json()["token"])

    async def callbacks(self, **query: Any) -> list[dict[str, Any]]:
        """List callbacks."""
        return await self._get("callbacks", query)

    async def of(self, token: str, state: str) -> dict[str, Any]:
        """Wait until the newest callback of an operation is in a state, and return it."""

        async def ask() -> dict[str, Any] | None:
            return next((c for c in await self.callbacks(token=token) if c["state"] == state), None)

        return await eventually(ask)

    async def replay(self, **body: object) -> dict[str, Any]:
        """Replay what a filter finds, or count it."""
        return await self.post("callbacks/replay", body)

    async def destinations(self, **query: Any) -> list[dict[str, Any]]:
        """List destinations."""
        return await self._get("destinations", query)

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """Make a request that is answered 200 and return its answer."""
        answer = await self.http.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def refused(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """Make a request that is refused; return status and message."""
        answer = await self.http.request(method, f"/api/v1/{path}", **options)
        return answer.status_code, answer.json()["message"]

    async def _get(self, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
        answer = await self.http.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()[path]
        return found


class OpenDesk(Protocol):
    """Opens a gateway with the settings of `callbacks:` that are given."""

    def __call__(self, **callbacks: object) -> AbstractAsyncContextManager[Desk]: ...


@asynccontextmanager
async def open_desk_on(database_url: str, **callbacks: object) -> AsyncIterator[Desk]:
    """Serve a database; what fails is not tried again within the test, unless a setting says so."""
    settings = read_settings(
        {
            "database": database_url,
            "allow_private_callbacks": True,
            "callbacks": {"first_retry_seconds": 3600, **callbacks},
        },
        environment=False,
    )
    async with (
        served(create_app([LabHandler()], settings=settings)) as here,
        httpx.AsyncClient(base_url=here.base_url, timeout=30) as http,
    ):
        yield Desk(here, http)
