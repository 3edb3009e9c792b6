"""The example of the documentation: docs/durable-operations.md shows it as it stands here."""

from datetime import timedelta

import pytest

from handlers.testing import TestGateway
from tests.testing.orders import Approval, FakeBank, Order, Orders, OrdersHandler

pytestmark = pytest.mark.anyio


async def test_an_order_is_charged_once_and_shipped_after_a_month() -> None:
    bank = FakeBank()
    async with TestGateway([OrdersHandler(bank)]) as gateway:
        run = await gateway.start(Orders.place, Order(item="tea", cents=900))
        await run.until_waiting()  # for the approval
        await run.signal("approval", Approval(ok=True))
        receipt = await run.result()  # thirty days later, at once
    assert receipt.approved
    assert bank.charged == [900]


async def test_an_order_that_nobody_approves_fails_after_a_week() -> None:
    async with TestGateway([OrdersHandler()]) as gateway:
        run = await gateway.start(Orders.place, Order(item="tea", cents=900))
        began = gateway.clock.now
        assert await run.state() == "running"
        await gateway.clock.advance(timedelta(days=8))
        assert await run.state() != "succeeded"
        assert gateway.clock.now == began + timedelta(days=8)


@pytest.mark.parametrize("step", ["charge#1", "approval#1", "sleep#1"])
async def test_a_crash_anywhere_charges_nobody_twice(step: str) -> None:
    bank = FakeBank()
    async with TestGateway([OrdersHandler(bank)], crash_after=step) as gateway:
        run = await gateway.start(Orders.place, Order(item="tea", cents=900))
        await run.signal("approval", Approval(ok=True))
        assert (await run.result()).approved
    assert bank.charged == [900]


async def test_the_handler_does_the_same_on_every_run() -> None:
    async with TestGateway([OrdersHandler()], always_replay=True) as gateway:
        run = await gateway.start(Orders.place, Order(item="tea", cents=900))
        await run.signal("approval", Approval(ok=True))
        assert (await run.result()).approved
