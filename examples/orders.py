"""A small shop: one operation that answers at once, and one that lasts as long as a parcel takes.

`make run` serves it. `quote` returns a price inline. `place` reserves stock, charges a card, waits
until the parcel leaves and ships it. Each step's result is recorded, so a crash, a restart or a
deploy in between repeats nothing that was done; and what was done is undone when the card is
refused or the caller cancels.

The card decides how the story goes: "declined" is refused, "flaky" is charged on the third
attempt, and any other works.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from datetime import timedelta
from typing import Annotated

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from pydantic import BaseModel, ConfigDict, Field

from handlers import DurableContext, RetryPolicy, durable_operation

__all__ = [
    "Bank",
    "OrderIn",
    "Orders",
    "OrdersHandler",
    "Payment",
    "Quote",
    "QuoteIn",
    "Receipt",
    "Reservation",
    "Shipment",
    "Warehouse",
    "services",
]

logger = logging.getLogger(__name__)

PRICES_CENTS = {"coffee": 1150, "mug": 890, "teapot": 3400}
NO_SUCH_ITEM = f"no such item: the shop sells {', '.join(PRICES_CENTS)}"

# Quicker than the default, so that the story of the flaky card is told in a second.
CHARGE_RETRY = RetryPolicy(max_attempts=5, initial_interval=timedelta(milliseconds=250))


class QuoteIn(BaseModel):
    """What a price is asked for."""

    model_config = ConfigDict(extra="forbid")

    item: str = Field(description="One of coffee, mug, teapot.", examples=["teapot"])
    quantity: int = Field(default=1, ge=1, le=100)


class Quote(BaseModel):
    """A price, in cents."""

    item: str
    quantity: int
    total_cents: int


class OrderIn(QuoteIn):
    """An order, and how its story goes."""

    card: str = Field(
        default="ok",
        min_length=1,
        max_length=40,
        description='"declined" is refused, "flaky" works on the third attempt, any other works.',
    )
    ship_after_seconds: Annotated[float, Field(ge=0, le=timedelta(days=30).total_seconds())] = (
        Field(default=5, description="How long the parcel waits before it leaves.")
    )


class Reservation(BaseModel):
    """Goods set aside for one order."""

    id: str
    item: str
    quantity: int


class Payment(BaseModel):
    """A charge on a card, in cents."""

    id: str
    amount_cents: int


class Shipment(BaseModel):
    """A parcel that has left."""

    tracking: str


class Receipt(BaseModel):
    """What the customer gets in the end."""

    item: str
    quantity: int
    total_cents: int
    payment: str
    tracking: str


@nexusrpc.service(name="orders")
class Orders:
    """What callers share with the shop: names and types, no code."""

    quote: nexusrpc.Operation[QuoteIn, Quote]
    place: nexusrpc.Operation[OrderIn, Receipt]


class Warehouse:
    """Stands in for the system that keeps the stock; it knows what was asked before by its key."""

    async def reserve(self, key: str, item: str, quantity: int) -> Reservation:
        """Set goods aside."""
        logger.info("reserved %d x %s", quantity, item)
        return Reservation(id=_reference("res", key), item=item, quantity=quantity)

    async def release(self, reservation: Reservation) -> None:
        """Put goods back."""
        logger.info("released %d x %s", reservation.quantity, reservation.item)

    async def ship(self, reservation: Reservation) -> Shipment:
        """Hand the parcel over."""
        logger.info("shipped %d x %s", reservation.quantity, reservation.item)
        return Shipment(tracking=_reference("trk", reservation.id))


class Bank:
    """Stands in for a payment provider, which under one key charges once however often asked."""

    def __init__(self) -> None:
        self._attempts: Counter[str] = Counter()

    async def charge(self, key: str, card: str, amount_cents: int) -> Payment:
        """Charge a card.

        Raises:
            nexusrpc.OperationError: The card was declined; trying again would not help.
            ConnectionError: The bank did not answer; trying again may help.
        """
        if card == "declined":
            raise nexusrpc.OperationError(
                "the card was declined", state=nexusrpc.OperationErrorState.FAILED
            )
        self._attempts[key] += 1
        if card == "flaky" and self._attempts[key] < 3:
            logger.info("the bank did not answer")
            raise ConnectionError("the bank did not answer")
        del self._attempts[key]
        logger.info("charged %d cents", amount_cents)
        return Payment(id=_reference("pay", key), amount_cents=amount_cents)

    async def refund(self, key: str) -> None:
        """Give back what was charged under the key, if anything was."""
        logger.info("refunded %s", _reference("pay", key))


@service_handler(service=Orders)
class OrdersHandler:
    """The shop's side of `Orders`."""

    def __init__(self, warehouse: Warehouse | None = None, bank: Bank | None = None) -> None:
        self._warehouse = warehouse or Warehouse()
        self._bank = bank or Bank()

    @sync_operation
    async def quote(self, _ctx: StartOperationContext, request: QuoteIn) -> Quote:
        """Answer with a price at once.

        Raises:
            nexusrpc.HandlerError: BAD_REQUEST for an item that the shop does not sell.
        """
        quote = _price(request)
        if quote is None:
            raise nexusrpc.HandlerError(NO_SUCH_ITEM, type=nexusrpc.HandlerErrorType.BAD_REQUEST)
        return quote

    @durable_operation(timeout=timedelta(days=31))
    async def place(self, ctx: DurableContext, order: OrderIn) -> Receipt:
        """Reserve, charge, wait, ship; undo what was done if it ends before the parcel leaves.

        Raises:
            nexusrpc.OperationError: The shop does not sell the item, or the card was declined.
        """
        quote = _price(order)
        if quote is None:
            raise nexusrpc.OperationError(NO_SUCH_ITEM, state=nexusrpc.OperationErrorState.FAILED)
        reservation = await ctx.step(
            self._warehouse.reserve, ctx.idempotency_key, order.item, order.quantity
        )
        ctx.progress(0.25, "goods reserved")
        payment_key = ctx.idempotency_key
        try:
            payment = await ctx.step(
                self._bank.charge, payment_key, order.card, quote.total_cents, retry=CHARGE_RETRY
            )
            ctx.progress(0.5, "card charged, parcel waiting")
            await ctx.sleep(timedelta(seconds=order.ship_after_seconds))
            shipment = await ctx.step(self._warehouse.ship, reservation)
        except (Exception, asyncio.CancelledError) as error:
            # A cancel arrives as CancelledError. The steps here are durable like the others.
            if not isinstance(error, nexusrpc.OperationError):
                # A charge whose answer never came may have been made, so refund by key.
                await ctx.step(self._bank.refund, payment_key)
            await ctx.step(self._warehouse.release, reservation)
            raise
        ctx.progress(1.0, "parcel left")
        return Receipt(
            item=quote.item,
            quantity=quote.quantity,
            total_cents=quote.total_cents,
            payment=payment.id,
            tracking=shipment.tracking,
        )


def _price(request: QuoteIn) -> Quote | None:
    price_cents = PRICES_CENTS.get(request.item)
    if price_cents is None:
        return None
    return Quote(
        item=request.item, quantity=request.quantity, total_cents=price_cents * request.quantity
    )


def _reference(prefix: str, key: str) -> str:
    """Derive a number from the key, so that asking twice gives the same one."""
    return f"{prefix}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


services = [OrdersHandler()]
