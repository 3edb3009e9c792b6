"""Calls to other endpoints, answered by the test."""

from collections.abc import Callable
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState

from handlers import DurableContext
from handlers.testing import TestGateway
from tests.testing.orders import RUN, work

pytestmark = pytest.mark.anyio


async def books(ctx: DurableContext, input: Any) -> Any:
    return await ctx.call(("shipping", "book"), {"to": input}, endpoint="warehouse")


class Shipping:
    def __init__(self) -> None:
        self.booked: list[str] = []

    async def book(self, input: dict[str, str]) -> dict[str, Any]:
        self.booked.append(input["to"])
        return {"to": input["to"], "number": len(self.booked)}


@pytest.mark.parametrize("name", ["book", "shipping/book"])
async def test_a_function_answers(name: str) -> None:
    shipping = Shipping()
    async with TestGateway([work(books)], calls={"warehouse": {name: shipping.book}}) as gateway:
        run = await gateway.start(RUN, "Bern")
        assert await run.result() == {"to": "Bern", "number": 1}


@pytest.mark.parametrize("always_replay", [False, True])
async def test_what_is_sent_again_is_answered_as_before(always_replay: bool) -> None:
    shipping = Shipping()
    calls = {"warehouse": {"book": shipping.book}}
    async with TestGateway([work(books)], calls=calls) as gateway:
        run = await gateway.start(RUN, "Bern")
        await run.result()
        keys = [step.key for step in run.steps]
    for fault in ("crash_before", "crash_after"):
        for key in keys:
            shipping.booked.clear()
            faults: dict[str, Any] = {fault: key, "always_replay": always_replay}
            async with TestGateway([work(books)], calls=calls, **faults) as gateway:
                run = await gateway.start(RUN, "Bern")
                assert await run.result() == {"to": "Bern", "number": 1}, key


async def fails(input: Any) -> None:
    raise OperationError("no room", state=OperationErrorState.FAILED)


def refuses(input: Any) -> None:
    raise HandlerError("bad address", type=HandlerErrorType.BAD_REQUEST)


@pytest.mark.parametrize(
    ("answer", "told"), [(fails, "no room"), (refuses, "bad address"), (None, "has no 'book'")]
)
async def test_errors_are_told(answer: Callable[[Any], Any] | None, told: str) -> None:
    async def tells(ctx: DurableContext, input: Any) -> str:
        try:
            await books(ctx, input)
        except Exception as error:  # noqa: BLE001  # each kind is told
            return str(error)
        return "?"

    calls = {"warehouse": {} if answer is None else {"book": answer}}
    async with TestGateway([work(tells)], calls=calls) as gateway:
        assert told in await (await gateway.start(RUN, "Bern")).result()
