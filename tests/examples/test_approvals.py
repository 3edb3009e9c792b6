"""The example that waits for a person and calls the shop, each on a gateway of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nexusrpc
import pytest

from clients import NexusClient, OperationHandle
from examples.approvals import (
    Approvals,
    ApprovalsHandler,
    Budget,
    Decision,
    Office,
    Purchase,
    PurchaseIn,
)
from examples.orders import OrdersHandler
from gateway import create_app
from gateway.settings import read_settings
from tests.support.eventually import eventually
from tests.support.gateway_process import Served, served

pytestmark = pytest.mark.anyio


class AskedOffice(Office):
    """Tells when somebody is asked."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    async def ask(self, approver: str, token: str, cents: int) -> None:
        """Note it."""
        self.asked.put_nowait((approver, token, cents))


@dataclass
class World:
    """The shop's gateway runs throughout; that of the approvals may be opened several times."""

    folder: Path
    shop: Served
    budget: Budget
    office: AskedOffice

    @asynccontextmanager
    async def approvals(self) -> AsyncIterator[tuple[Served, NexusClient]]:
        """Serve the approvals over their database."""
        settings = read_settings(
            {
                "database": f"sqlite:///{self.folder / 'approvals.db'}",
                "endpoints": {"orders": {"url": f"{self.shop.base_url}/services"}},
            },
            environment=False,
        )
        handler = ApprovalsHandler(self.budget, self.office)
        async with (
            served(create_app([handler], settings=settings)) as here,
            NexusClient(f"{here.base_url}/services") as nexus,
        ):
            yield here, nexus

    async def asked(self) -> tuple[str, str, int]:
        """Wait until an approver is asked."""
        async with asyncio.timeout(10):
            return await self.office.asked.get()

    async def order(self, state: str) -> dict[str, Any]:
        """Wait until the shop has an order in that state."""

        async def ask() -> dict[str, Any] | None:
            async with httpx.AsyncClient(base_url=self.shop.base_url) as http:
                listed = (await http.get("/api/v1/operations")).json()["operations"]
            return next((order for order in listed if order["state"] == state), None)

        return await eventually(ask)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    shop = create_app([OrdersHandler()], database=f"sqlite:///{tmp_path / 'shop.db'}")
    async with served(shop) as here:
        yield World(tmp_path, here, Budget(), AskedOffice())


async def start(nexus: NexusClient, **wanted: Any) -> tuple[OperationHandle[Purchase], str]:
    handle = await nexus.start(Approvals.buy, PurchaseIn(employee="sam", **wanted))
    assert handle.token is not None
    return handle, handle.token


async def failure(handle: OperationHandle[Purchase]) -> nexusrpc.OperationError:
    with pytest.raises(nexusrpc.OperationError) as caught:
        await handle.result(timeout=20)
    return caught.value


TWO_TEAPOTS: dict[str, Any] = {"item": "teapot", "quantity": 2, "ship_after_seconds": 0}


async def test_what_is_cheap_is_bought_at_once(world: World) -> None:
    async with world.approvals() as (_, nexus):
        mug = PurchaseIn(item="mug", employee="sam", ship_after_seconds=0)
        purchase = await nexus.execute(Approvals.buy, mug)
    assert purchase.approved_by is None
    assert purchase.total_cents == 890
    assert purchase.tracking.startswith("trk-")
    assert list(world.budget.spent.values()) == [890]
    assert world.budget.held == {}
    assert world.office.asked.empty()


async def test_what_is_expensive_waits_for_an_approval_also_across_a_restart(
    world: World,
) -> None:
    async with world.approvals() as (_, nexus):
        _, token = await start(nexus, **TWO_TEAPOTS)
        asked = await world.asked()
    assert asked == ("the manager of sam", token, 6800)
    assert list(world.budget.held.values()) == [6800]
    async with world.approvals() as (here, nexus):
        yes = Decision(approved=True, by="kim")
        assert await here.gateway.signal(token, "decision", yes, "mail-1")
        assert not await here.gateway.signal(token, "decision", yes, "mail-1")
        purchase = await nexus.handle(Approvals, Approvals.buy, token).result(timeout=20)
    assert (purchase.approved_by, purchase.quantity) == ("kim", 2)
    assert list(world.budget.spent.values()) == [6800]
    assert world.office.asked.empty()


async def test_a_refusal_gives_the_money_back_and_orders_nothing(world: World) -> None:
    async with world.approvals() as (here, nexus):
        handle, token = await start(nexus, **TWO_TEAPOTS)
        await world.asked()
        await here.gateway.signal(token, "decision", Decision(approved=False, by="kim"))
        error = await failure(handle)
    assert "kim did not approve it" in str(error)
    assert world.budget.held == world.budget.spent == {}


async def test_without_a_decision_in_time_nothing_is_bought(world: World) -> None:
    async with world.approvals() as (_, nexus):
        handle, _ = await start(nexus, **TWO_TEAPOTS, decide_within_seconds=0.1)
        error = await failure(handle)
    assert "nobody decided in time" in str(error)
    assert world.budget.held == world.budget.spent == {}


async def test_a_declined_card_fails_the_purchase_with_the_shop_s_words(world: World) -> None:
    async with world.approvals() as (_, nexus):
        handle, _ = await start(nexus, item="mug", card="declined")
        error = await failure(handle)
    assert "the card was declined" in str(error)
    assert world.budget.held == world.budget.spent == {}


async def test_what_the_shop_does_not_sell_is_refused_before_money_is_set_aside(
    world: World,
) -> None:
    async with world.approvals() as (_, nexus):
        handle, _ = await start(nexus, item="anvil")
        error = await failure(handle)
    assert error.state is nexusrpc.OperationErrorState.FAILED
    assert world.budget.held == world.budget.spent == {}


async def test_a_cancel_is_handed_on_to_the_shop_and_gives_the_money_back(world: World) -> None:
    async with world.approvals() as (_, nexus):
        handle, _ = await start(nexus, item="mug", ship_after_seconds=600)
        await world.order("ready")  # its parcel waits, out of memory
        await handle.cancel()
        error = await failure(handle)
        await world.order("canceled")
    assert error.state is nexusrpc.OperationErrorState.CANCELED
    assert world.budget.held == world.budget.spent == {}
