"""Buying with an approval: an operation that waits for a person and calls another team's service.

`buy` asks the shop of `examples/orders.py` for a price, sets the money aside, waits for somebody to
approve what is expensive, and orders. It ends when the parcel has left, days later if need be.
However it ends, the money that was set aside is either spent or free again.

The shop is reached through the endpoint `orders`, here on the same gateway:

    export NEXUS_GATEWAY_ENDPOINTS__ORDERS__URL=http://127.0.0.1:8080/services
    nexus-gateway serve examples.orders:services examples.approvals:services
    nexus-gateway call approvals buy --input '{"item": "teapot", "quantity": 2, "employee": "sam"}'
    nexus-gateway operations list
    nexus-gateway operations signal TOKEN decision --input '{"approved": true, "by": "kim"}'
"""

import asyncio
import hashlib
import logging
from datetime import timedelta

import nexusrpc
from nexusrpc.handler import service_handler
from pydantic import BaseModel, ConfigDict, Field

from examples.orders import OrderIn, Orders, QuoteIn
from handlers import DurableContext, durable_operation

__all__ = [
    "Approvals",
    "ApprovalsHandler",
    "Budget",
    "Decision",
    "Office",
    "Purchase",
    "PurchaseIn",
    "services",
]

logger = logging.getLogger(__name__)

# The shop, in the gateway's settings.
ENDPOINT = "orders"
# Below this nobody is asked.
FREE_HAND_CENTS = 5000


class PurchaseIn(BaseModel):
    """What an employee wants to have."""

    model_config = ConfigDict(extra="forbid")

    item: str = Field(description="One of coffee, mug, teapot.", examples=["teapot"])
    quantity: int = Field(default=1, ge=1, le=100)
    employee: str = Field(min_length=1)
    card: str = Field(default="ok", description="How the order's story goes: see the shop.")
    ship_after_seconds: float = Field(default=1, ge=0)
    decide_within_seconds: float = Field(
        default=timedelta(days=3).total_seconds(),
        gt=0,
        le=timedelta(days=30).total_seconds(),
        description="Without a decision by then the purchase is not approved.",
    )


class Decision(BaseModel):
    """What the approver says: the payload of the signal `decision`."""

    approved: bool
    by: str


class Purchase(BaseModel):
    """What was bought."""

    item: str
    quantity: int
    total_cents: int
    approved_by: str | None = Field(description="Nobody, where nobody had to be asked.")
    tracking: str


@nexusrpc.service(name="approvals")
class Approvals:
    """What callers share with this service: names and types, no code."""

    buy: nexusrpc.Operation[PurchaseIn, Purchase]


class Budget:
    """Stands in for the system that knows how much money is left; under one key it acts once."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.spent: dict[str, int] = {}

    async def hold(self, key: str, cents: int) -> str:
        """Set money aside."""
        hold = f"hold-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
        self.held[hold] = cents
        logger.info("set %d cents aside", cents)
        return hold

    async def spend(self, hold: str) -> None:
        """Use what was set aside."""
        if hold in self.held:
            self.spent[hold] = self.held.pop(hold)
            logger.info("spent %d cents", self.spent[hold])

    async def release(self, hold: str) -> None:
        """Give back what was set aside."""
        logger.info("gave %d cents back", self.held.pop(hold, 0))


class Office:
    """Stands in for the staff directory and the mail system."""

    async def approver_of(self, employee: str) -> str:
        """Return who approves what an employee buys."""
        return f"the manager of {employee}"

    async def ask(self, approver: str, token: str, cents: int) -> None:
        """Send a mail with two links; each sends the signal `decision` to the operation."""
        logger.info("%s is asked to approve %d cents: %s", approver, cents, token)


@service_handler(service=Approvals)
class ApprovalsHandler:
    """The side of `Approvals` that does the work."""

    def __init__(self, budget: Budget | None = None, office: Office | None = None) -> None:
        self._budget = budget or Budget()
        self._office = office or Office()

    @durable_operation(timeout=timedelta(days=60))
    async def buy(self, ctx: DurableContext, wanted: PurchaseIn) -> Purchase:
        """Price, set aside, ask, order; give back what was set aside if it comes to nothing.

        Raises:
            nexusrpc.OperationError: It was not approved, or the shop refused the order.
        """
        quote, approver = await ctx.gather(
            ctx.call(
                Orders.quote,
                QuoteIn(item=wanted.item, quantity=wanted.quantity),
                endpoint=ENDPOINT,
            ),
            ctx.step(self._office.approver_of, wanted.employee),
        )
        hold = await ctx.step(self._budget.hold, ctx.idempotency_key, quote.total_cents)
        try:
            approved_by = None
            if quote.total_cents > FREE_HAND_CENTS:
                ctx.progress(0.25, f"waits for {approver}")
                approved_by = await self._approval(ctx, wanted, approver, quote.total_cents)
            ctx.progress(0.5, "ordered")
            # A cancel that comes while this waits is handed on to the shop.
            receipt = await ctx.call(
                Orders.place,
                OrderIn(
                    item=wanted.item,
                    quantity=wanted.quantity,
                    card=wanted.card,
                    ship_after_seconds=wanted.ship_after_seconds,
                ),
                endpoint=ENDPOINT,
            )
        except (Exception, asyncio.CancelledError):
            await ctx.step(self._budget.release, hold)
            raise
        await ctx.step(self._budget.spend, hold)
        ctx.progress(1.0, "bought")
        return Purchase(
            item=receipt.item,
            quantity=receipt.quantity,
            total_cents=receipt.total_cents,
            approved_by=approved_by,
            tracking=receipt.tracking,
        )

    async def _approval(
        self, ctx: DurableContext, wanted: PurchaseIn, approver: str, cents: int
    ) -> str:
        """Return who approved the purchase.

        Raises:
            nexusrpc.OperationError: Nobody did.
        """
        await ctx.step(self._office.ask, approver, ctx.operation_token, cents)
        try:
            decision = await ctx.wait_for(
                "decision", Decision, timeout=timedelta(seconds=wanted.decide_within_seconds)
            )
        except TimeoutError:
            raise _not_bought("nobody decided in time") from None
        if not decision.approved:
            raise _not_bought(f"{decision.by} did not approve it")
        return decision.by


def _not_bought(why: str) -> nexusrpc.OperationError:
    return nexusrpc.OperationError(why, state=nexusrpc.OperationErrorState.FAILED)


services = [ApprovalsHandler()]
