"""The handlers that the testing kit is tried on; the first is the documentation's example."""

from datetime import timedelta
from typing import Any

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from pydantic import BaseModel

from handlers import DurableContext, RetryPolicy, durable_operation


class Order(BaseModel):
    item: str
    cents: int


class Approval(BaseModel):
    ok: bool


class Receipt(BaseModel):
    payment: str
    approved: bool


@nexusrpc.service
class Orders:
    place: nexusrpc.Operation[Order, Receipt]
    price: nexusrpc.Operation[str, int]


class FakeBank:
    """Counts what is charged, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.charged: list[int] = []
        self.failures = failures

    async def charge(self, cents: int) -> str:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the bank does not answer")
        self.charged.append(cents)
        return f"payment-{len(self.charged)}"


@service_handler(service=Orders)
class OrdersHandler:
    def __init__(self, bank: FakeBank | None = None) -> None:
        self.bank = bank or FakeBank()

    @durable_operation(timeout=timedelta(days=60))
    async def place(self, ctx: DurableContext, order: Order) -> Receipt:
        payment = await ctx.step(
            self.bank.charge, order.cents, retry=RetryPolicy(max_attempts=3), name="charge"
        )
        ctx.progress(0.5, "paid")
        approval = await ctx.wait_for("approval", Approval, timeout=timedelta(days=7))
        await ctx.sleep(timedelta(days=30))
        return Receipt(payment=payment, approved=approval.ok)

    @sync_operation
    async def price(self, ctx: StartOperationContext, item: str) -> int:
        return len(item)


def work(method: Any, *, timeout: timedelta | None = None) -> Any:
    """Return a service `Work` with one durable operation, `run`, made of a function."""

    async def run(self: Any, ctx: DurableContext, input: Any) -> Any:
        return await method(ctx, input)

    service: Any = type(
        "Work", (), {"run": durable_operation(timeout=timeout)(run), "__module__": __name__}
    )
    return service_handler(service)()


RUN = ("Work", "run")
