"""What a test can do with a gateway, and what it is told when something is wrong."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from random import random
from typing import Any

import pytest
from nexusrpc import OperationError, OperationErrorState

from handlers import DurableContext, RetryPolicy
from handlers.testing import FakeClock, NeverReached, Stuck, TestGateway
from tests.testing.orders import RUN, Approval, FakeBank, Order, Orders, OrdersHandler, work

pytestmark = pytest.mark.anyio

TEA = Order(item="tea", cents=900)
DAY = timedelta(days=1)


async def test_a_month_takes_no_time() -> None:
    async def handler(ctx: DurableContext, input: Any) -> str:
        for _ in range(12):
            await ctx.sleep(30 * DAY)
        return ctx.now().isoformat()

    began = time.monotonic()
    async with TestGateway([work(handler)]) as gateway:
        run = await gateway.start(RUN, None)
        assert await run.result() == "2030-12-27T00:00:00+00:00"
        assert gateway.clock.now == datetime(2030, 12, 27, tzinfo=UTC)
    assert time.monotonic() - began < 2


async def test_what_was_recorded_is_shown() -> None:
    bank = FakeBank(failures=1)
    async with TestGateway([OrdersHandler(bank)]) as gateway:
        run = await gateway.start(Orders.place, TEA)
        charged = await run.until(step="charge#1")
        assert (charged.kind, charged.attempts, charged.output) == ("step", 2, "payment-1")
        assert charged.at == gateway.clock.now == datetime(2030, 1, 1, 0, 0, 1, tzinfo=UTC)
        await run.signal("approval", {"ok": False})
        await run.result()
        assert [step.key for step in run.steps if step.kind in {"step", "signal"}] == [
            "charge#1",
            "approval#1",
        ]
        assert run.steps[2].output == {"ok": False}
        assert await run.progress() == (0.5, "paid")
        assert await run.state() == "succeeded"


async def test_a_step_that_fails_for_good_is_shown_with_its_error() -> None:
    async with TestGateway([OrdersHandler(FakeBank(failures=3))]) as gateway:
        run = await gateway.start(Orders.place, TEA)
        with pytest.raises(OperationError, match="step 'charge#1' failed 3 times"):
            await run.result()
        assert run.steps[-1].error == "ConnectionError: the bank does not answer"
        assert run.steps[-1].attempts == 3


async def test_a_second_signal_of_an_id_counts_for_nothing() -> None:
    async with TestGateway([OrdersHandler()]) as gateway:
        run = await gateway.start(Orders.place, TEA)
        assert await run.signal("approval", Approval(ok=True), id="a") is True
        assert await run.signal("approval", Approval(ok=False), id="a") is False
        assert (await run.result()).approved


async def test_a_cancel_and_a_deadline_end_an_operation() -> None:
    async with TestGateway([OrdersHandler()]) as gateway:
        canceled = await gateway.start(Orders.place, TEA)
        await canceled.until_waiting()
        await canceled.cancel()
        with pytest.raises(OperationError) as told:
            await canceled.result()
        assert told.value.state is OperationErrorState.CANCELED
        late = await gateway.start(Orders.place, TEA, timeout=DAY)
        with pytest.raises(OperationError, match="operation timed out") as timed_out:
            await late.result()
        assert timed_out.value.state is OperationErrorState.FAILED
        assert gateway.clock.now == datetime(2030, 1, 2, tzinfo=UTC)


async def test_a_timeout_of_a_wait_is_on_the_clock() -> None:
    async def handler(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.wait_for("never", timeout=3 * DAY)
        except TimeoutError:
            return ctx.now().isoformat()
        return "?"

    async with TestGateway([work(handler)]) as gateway:
        run = await gateway.start(RUN, None)
        await gateway.clock.advance(2 * DAY)
        assert await run.state() == "ready"
        assert await run.result() == "2030-01-04T00:00:00+00:00"


async def test_a_step_that_takes_real_time_is_waited_for() -> None:
    async def handler(ctx: DurableContext, input: Any) -> list[str]:
        async def slow() -> str:
            await asyncio.sleep(0.05)
            return "slow"

        def on_a_thread() -> str:
            time.sleep(0.05)  # a thread may
            return "thread"

        return await ctx.gather(ctx.step(slow), ctx.step(on_a_thread))

    async with TestGateway([work(handler, timeout=timedelta(seconds=1))]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until_waiting()
        assert await run.state() == "succeeded"
        assert await run.result() == ["slow", "thread"]
        assert gateway.clock.now == datetime(2030, 1, 1, tzinfo=UTC)


async def test_the_request_id_and_the_caller_are_the_caller_s() -> None:
    async def handler(ctx: DurableContext, input: Any) -> list[str]:
        return [ctx.request_id, ctx.caller, ctx.headers["x-tenant"]]

    async with TestGateway([work(handler)]) as gateway:
        options: dict[str, Any] = {"request_id": "r-1", "headers": {"X-Tenant": "t"}}
        run = await gateway.start(RUN, 1, caller="shop", **options)
        assert await run.result() == ["r-1", "shop", "t"]
        answered = await gateway.start(RUN, 1, caller="shop", **options)
        assert await answered.result() == ["r-1", "shop", "t"]


async def test_an_inline_operation_has_answered() -> None:
    async with TestGateway([OrdersHandler()]) as gateway:
        run = await gateway.start(Orders.price, "tea")
        assert await run.result() == 3


async def test_waiting_for_what_nobody_sends_is_told() -> None:
    async with TestGateway([OrdersHandler()]) as gateway:
        run = await gateway.start(Orders.place, TEA)
        await gateway.clock.advance(timedelta(seconds=20))
        assert await run.state() == "ready"

    async def handler(ctx: DurableContext, input: Any) -> None:
        await ctx.step(str, 1)
        await ctx.wait_for("approval")

    async with TestGateway([work(handler)]) as gateway:
        run = await gateway.start(RUN, None)
        with pytest.raises(Stuck, match=r"Work/run waits .* a signal; so far it recorded str#1"):
            await run.result()


async def test_a_step_that_is_never_done_is_told() -> None:
    async def handler(ctx: DurableContext, input: Any) -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        await ctx.step(hang)

    async with TestGateway([work(handler)], patience=0.05) as gateway:
        run = await gateway.start(RUN, None)
        with pytest.raises(Stuck, match="Work/run is in a step"):
            await run.result()


async def test_a_step_that_never_comes_is_told() -> None:
    async def handler(ctx: DurableContext, input: Any) -> None:
        await ctx.step(str, 1)

    async with TestGateway([work(handler)]) as gateway:
        run = await gateway.start(RUN, None)
        with pytest.raises(NeverReached, match="without 'charge#1'; it recorded str#1"):
            await run.until(step="charge#1")
    with pytest.raises(NeverReached, match=r"at ship#1: what was recorded is str#1"):
        async with TestGateway([work(handler)], crash_after="ship#1") as gateway:
            await (await gateway.start(RUN, None)).result()


async def test_a_handler_that_is_not_the_same_on_every_run_is_found() -> None:
    async def handler(ctx: DurableContext, input: Any) -> None:
        await ctx.step(str, random())
        await ctx.step(str, 1)

    async with TestGateway([work(handler)]) as gateway:
        await (await gateway.start(RUN, None)).result()
    async with TestGateway([work(handler)], always_replay=True) as gateway:
        run = await gateway.start(RUN, None)
        with pytest.raises(Stuck, match=r"was paused: .*str#1.* other arguments"):
            await run.result()


async def test_a_new_version_continues_what_the_old_one_began() -> None:
    async def old(ctx: DurableContext, input: Any) -> str:
        await ctx.sleep(DAY)
        return await ctx.step(str, "old")

    async def new(ctx: DurableContext, input: Any) -> str:
        await ctx.sleep(DAY)
        return await ctx.step(str, "new")

    async with TestGateway([work(old)]) as gateway:
        run = await gateway.start(RUN, None)
        await run.until(step="sleep#1")
        await gateway.restart([work(new)])
        assert await run.result() == "new"


async def test_a_retry_waits_on_the_clock() -> None:
    at: list[datetime] = []

    async def handler(ctx: DurableContext, input: Any) -> None:
        async def fail() -> None:
            at.append(gateway.clock.now)
            raise ConnectionError

        policy = RetryPolicy(max_attempts=4, initial_interval=timedelta(seconds=10))
        await ctx.step(fail, retry=policy)

    async with TestGateway([work(handler)]) as gateway:
        with pytest.raises(OperationError, match="failed 4 times"):
            await (await gateway.start(RUN, None)).result()
    assert [round((moment - at[0]).total_seconds()) for moment in at] == [0, 10, 30, 70]


async def test_several_operations_share_the_clock() -> None:
    ended: list[int] = []

    async def handler(ctx: DurableContext, days: int) -> int:
        await ctx.sleep(days * DAY)
        ended.append(days)
        return days

    async with TestGateway([work(handler)]) as gateway:
        runs = [await gateway.start(RUN, days) for days in (3, 1, 2)]
        assert await asyncio.gather(*[run.result() for run in runs]) == [3, 1, 2]
    assert ended == [1, 2, 3]


async def test_a_gateway_that_is_not_open_says_how_to_open_it() -> None:
    gateway = TestGateway([OrdersHandler()])
    with pytest.raises(RuntimeError, match="async with TestGateway"):
        await gateway.start(Orders.place, TEA)
    with pytest.raises(RuntimeError, match="async with TestGateway"):
        await gateway.clock.advance(DAY)


async def test_a_clock_of_its_own_calls_what_is_due_in_order() -> None:
    clock = FakeClock()
    called: list[str] = []
    clock.call_later(2, called.append, "second")
    clock.call_later(1, called.append, "first")
    clock.call_later(1.5, called.append, "never").cancel()
    clock.call_later(0, called.append, "at once")
    await clock.advance(timedelta(seconds=1))
    assert sorted(called) == ["at once", "first"]
    await clock.advance(timedelta(hours=1))
    assert called[2:] == ["second"]
    with pytest.raises(ValueError, match="does not go back"):
        await clock.advance(timedelta(seconds=-1))
