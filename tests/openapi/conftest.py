import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.openapi.contract import Json, load_contract
from tests.support.gateway_process import GatewayProcess, free_port

CONFIG = """
endpoints:
  shop:
    targets: [examples.orders:services]
callbacks:
  # No other destination: generated requests must not make the gateway call anybody.
  allow: [{host: 127.0.0.1, insecure: true, private: true}]
  # What does not arrive at once is given up, and never waits.
  max_age_seconds: 0.5
  breaker_failures: 1000000
"""
SECONDS_OF_A_DAY = 24 * 3600


@dataclass
class Shop:
    """A gateway that serves what the contract's examples are about."""

    base_url: str
    client: httpx.Client
    paused: str  # the token of an operation that is paused

    def order(self, *, ship_after_seconds: float = SECONDS_OF_A_DAY) -> str:
        """Place an order and return its token."""
        return self._start(
            "orders/place", {"item": "mug", "ship_after_seconds": ship_after_seconds}
        )

    def shipped_order(self) -> str:
        token = self.order(ship_after_seconds=0)
        result = self.client.get(
            "/services/orders/place/result", params={"token": token, "wait": "10s"}
        )
        assert result.status_code == 200
        return token

    def approval(self) -> str:
        """Ask for an approval and return the operation's token."""
        return self._start("approvals/ask", "may I?")

    def dead_letter(self) -> int:
        """Have a completion given up and return the id of its callback."""
        value = {"item": "mug", "ship_after_seconds": 0}
        token = self._start("orders/place", value, callback=f"http://127.0.0.1:{free_port()}")
        deadline = time.monotonic() + 10
        while True:
            found = self.client.get("/api/v1/callbacks", params={"token": token}).json()
            [only] = found["callbacks"]
            if only["state"] == "failed":
                callback_id: int = only["id"]
                return callback_id
            assert time.monotonic() < deadline, only

    def _start(self, operation: str, value: Any, **query: str) -> str:
        answer = self.client.post(f"/services/{operation}", json=value, params=query)
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token


@pytest.fixture(scope="session")
def contract() -> Json:
    return load_contract()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    database = folder / "nexus.db"
    config = folder / "gateway.yaml"
    config.write_text(CONFIG)
    target = str(Path(__file__).with_name("services.py")) + ":services"
    options = ("--config", str(config))
    with GatewayProcess.start(target, database, *options) as first, _client(first) as client:
        paused = Shop(first.base_url, client, "").order()
    _pause(database, paused)
    with GatewayProcess.start(target, database, *options) as gateway, _client(gateway) as client:
        yield Shop(gateway.base_url, client, paused)


def _client(gateway: GatewayProcess) -> httpx.Client:
    return httpx.Client(base_url=gateway.base_url, timeout=30)


def _pause(database: Path, token: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        changed = connection.execute(
            "UPDATE operation SET state = 'paused', pause_reason = 'a test' WHERE token = ?",
            (token,),
        )
        assert changed.rowcount == 1
