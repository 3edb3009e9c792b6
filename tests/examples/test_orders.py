import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import nexusrpc
import pytest
from nexusrpc.handler import StartOperationContext
from pydantic import ValidationError

from examples.orders import OrderIn, Orders, OrdersHandler, Quote, QuoteIn
from handlers import DurableContext, RetryPolicy

pytestmark = pytest.mark.anyio


class RecordingContext:
    """Stands in for `DurableContext`: runs steps, retries at once, keeps a record."""

    def __init__(self, *, canceled_while_asleep: bool = False) -> None:
        self.steps: list[str] = []
        self.slept: list[timedelta] = []
        self.shown: list[float] = []
        self._token = str(uuid.uuid4())
        self._canceled_while_asleep = canceled_while_asleep

    @property
    def idempotency_key(self) -> str:
        return f"{self._token}/{len(self.steps) + 1}"

    async def step(
        self, fn: Callable[..., Awaitable[Any]], *args: Any, retry: RetryPolicy | None = None
    ) -> Any:
        self.steps.append(fn.__name__)
        policy = retry or RetryPolicy()
        attempt = 1
        while True:
            try:
                return await fn(*args)
            except Exception as error:
                if not policy.retries(error, attempt):
                    raise
                attempt += 1

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration)
        if self._canceled_while_asleep:
            raise asyncio.CancelledError

    def progress(self, fraction: float, message: str = "") -> None:
        self.shown.append(fraction)


def as_context(context: RecordingContext) -> DurableContext:
    return cast("DurableContext", context)


async def quote(request: QuoteIn) -> Quote:
    # An inline handler that asks nothing of its context works without one.
    return await OrdersHandler().quote(cast("StartOperationContext", None), request)


async def test_a_quote_multiplies_the_price() -> None:
    assert await quote(QuoteIn(item="teapot", quantity=3)) == Quote(
        item="teapot", quantity=3, total_cents=10200
    )


async def test_a_quote_for_an_unknown_item_is_a_bad_request_that_names_the_known_ones() -> None:
    with pytest.raises(nexusrpc.HandlerError, match="coffee, mug, teapot") as caught:
        await quote(QuoteIn(item="anvil"))
    assert caught.value.type is nexusrpc.HandlerErrorType.BAD_REQUEST


async def test_an_order_is_reserved_charged_and_shipped() -> None:
    context = RecordingContext()
    receipt = await OrdersHandler().place(
        as_context(context), OrderIn(item="mug", quantity=2, ship_after_seconds=7)
    )
    assert (receipt.item, receipt.quantity, receipt.total_cents) == ("mug", 2, 1780)
    assert context.steps == ["reserve", "charge", "ship"]
    assert context.slept == [timedelta(seconds=7)]
    assert context.shown == sorted(context.shown)
    assert context.shown[-1] == 1


async def test_a_flaky_card_is_charged_through_retries() -> None:
    context = RecordingContext()
    receipt = await OrdersHandler().place(as_context(context), OrderIn(item="mug", card="flaky"))
    assert receipt.total_cents == 890
    assert context.steps == ["reserve", "charge", "ship"]


async def test_a_declined_card_fails_the_order_and_releases_the_goods() -> None:
    context = RecordingContext()
    with pytest.raises(nexusrpc.OperationError, match="declined") as caught:
        await OrdersHandler().place(as_context(context), OrderIn(item="mug", card="declined"))
    assert caught.value.state is nexusrpc.OperationErrorState.FAILED
    assert context.steps == ["reserve", "charge", "release"]


async def test_a_cancel_before_the_parcel_leaves_refunds_and_releases() -> None:
    context = RecordingContext(canceled_while_asleep=True)
    with pytest.raises(asyncio.CancelledError):
        await OrdersHandler().place(as_context(context), OrderIn(item="mug"))
    assert context.steps == ["reserve", "charge", "refund", "release"]


async def test_an_order_for_an_unknown_item_fails_before_anything_is_done() -> None:
    context = RecordingContext()
    with pytest.raises(nexusrpc.OperationError, match="the shop sells"):
        await OrdersHandler().place(as_context(context), OrderIn(item="anvil"))
    assert context.steps == []


async def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="qantity"):
        OrderIn.model_validate({"item": "mug", "qantity": 2})


async def test_the_service_is_named_orders() -> None:
    definition = nexusrpc.get_service_definition(Orders)
    assert definition is not None
    assert definition.name == "orders"
    assert set(definition.operation_definitions) == {"quote", "place"}
