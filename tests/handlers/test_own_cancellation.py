"""Calls that the handler's own code cancels, and branches that end together."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from handlers import DurableContext, RetryPolicy, StepError
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, until

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
ONCE = RetryPolicy(max_attempts=1)
SOON = 0.03


class Shop:
    """Steps that count, and one that never ends."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.finished: list[str] = []

    async def note(self, name: str) -> str:
        self.ran[name] += 1
        return name

    async def forever(self) -> None:
        self.ran["forever"] += 1
        await asyncio.Event().wait()

    async def fails(self) -> None:
        self.ran["fails"] += 1
        raise ValueError("no")

    async def stubborn(self) -> str:
        """End at once when cancelled, with a result."""
        self.ran["stubborn"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "late"


async def with_timeout(shop: Shop, ctx: DurableContext, call: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(SOON):
            await call
    except TimeoutError:
        return await ctx.step(shop.note, "too late")
    return await ctx.step(shop.note, "in time")


CALLS: dict[str, Callable[[Shop, DurableContext], Awaitable[Any]]] = {
    "step": lambda shop, ctx: ctx.step(shop.forever),
    "stubborn": lambda shop, ctx: ctx.step(shop.stubborn),
    "sleep": lambda shop, ctx: ctx.sleep(timedelta(seconds=SOON * 3)),
    "wait": lambda shop, ctx: ctx.wait_for("word", timeout=HOUR),
    "backoff": lambda shop, ctx: ctx.step(
        shop.fails, retry=RetryPolicy(initial_interval=HOUR, max_interval=HOUR)
    ),
    "gather": lambda shop, ctx: ctx.gather(ctx.step(shop.forever), ctx.sleep(HOUR)),
}


@pytest.mark.parametrize("what", CALLS)
async def test_a_timeout_takes_the_same_path_on_every_run(open_world: OpenWorld, what: str) -> None:
    shop = Shop()
    seen: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        seen.append(await with_timeout(shop, ctx, CALLS[what](shop, ctx)))
        # The word comes, and the time passes, before the next run: it must make no difference.
        await ctx.step(shop.gate.wait, name="gate")
        return seen[-1]

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "note#1")
    ran = dict(shop.ran)
    await world.signal(token, "word")
    await asyncio.sleep(SOON * 4)
    await world.reopen()
    await until(lambda: len(seen) == 2)
    await world.reopen()
    await until(lambda: len(seen) == 3)
    shop.gate.set()
    assert await world.result(token) == "too late"
    assert shop.ran == ran
    assert set(seen) == {"too late"}


async def test_siblings_that_a_group_cancels_stay_cancelled(open_world: OpenWorld) -> None:
    shop = Shop()
    seen: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step(shop.forever))
                group.create_task(ctx.sleep(HOUR))
                group.create_task(ctx.step(shop.fails, retry=ONCE))
        except ExceptionGroup as errors:
            seen.append(repr(errors.exceptions))
        await ctx.step(shop.gate.wait, name="gate")
        return await ctx.step(shop.note, "after")

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: len(seen) == 1)
    await world.reopen()
    await until(lambda: len(seen) == 2)
    shop.gate.set()
    assert await world.result(token) == "after"
    assert shop.ran["forever"] == shop.ran["fails"] == 1
    assert seen[0] == seen[1] != ""
    keys = {entry.key for entry in await world.journal(token)}
    assert {"1/forever#1.cancelled", "2/sleep#1.cancelled", "3/fails#1"} <= keys


async def test_a_cancel_waits_for_what_the_handler_cancelled_before_it(
    open_world: OpenWorld,
) -> None:
    shop = Shop()

    async def body(ctx: DurableContext, input: Any) -> None:
        await with_timeout(shop, ctx, ctx.step(shop.forever))
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(shop.note, "cleanup")

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.kill()
    await world.open()
    await world.cancel(token)  # before the timeout has passed again
    assert await world.failure(token) == ("canceled", "operation canceled")
    assert shop.ran == {"forever": 1, "too late": 1, "cleanup": 1}


async def test_a_step_that_raises_a_cancellation_of_its_own_fails(open_world: OpenWorld) -> None:
    async def gives_up() -> None:
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.step(gives_up, retry=ONCE)
        except StepError as error:
            return error.message
        return ""

    world = await open_world(work(body))
    result = await world.result(await world.start("run"))
    assert result == "the step's function raised CancelledError"


async def test_a_refused_record_of_a_cancellation_is_written_before_what_follows(
    open_world: OpenWorld,
) -> None:
    shop = Shop()

    async def body(ctx: DurableContext, input: Any) -> str:
        return await with_timeout(shop, ctx, ctx.step(shop.forever))

    world = await open_world(work(body))
    refusals = [OSError("disk full")]

    def refuse(write: Any) -> Exception | None:
        is_record = getattr(getattr(write, "entry", None), "kind", "") == "cancelled"
        return refusals.pop() if is_record and refusals else None

    world.database.refuses = refuse
    token = await world.start("run")
    assert await world.result(token) == "too late"
    keys = [entry.key for entry in await world.journal(token)]
    assert keys == ["forever#1.cancelled", "note#1"]


async def test_gather_ends_all_branches_before_it_raises(open_world: OpenWorld) -> None:
    shop = Shop()
    seen: list[Any] = []

    async def slow(ctx: DurableContext) -> bool:
        try:
            return await ctx.step(shop.gate.wait, name="slow")
        finally:
            shop.finished.append("slow")

    async def failing(ctx: DurableContext, name: str) -> None:
        await ctx.step(shop.fails, name=name, retry=ONCE)

    async def body(ctx: DurableContext, input: Any) -> list[Any]:
        assert await ctx.gather() == []
        try:
            await ctx.gather(slow(ctx), failing(ctx, "one"), failing(ctx, "two"))
        except StepError as error:
            seen.append((error.step, list(shop.finished)))
        return await ctx.gather(ctx.step(shop.note, "a"), ctx.gather(ctx.step(shop.note, "b")))

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "3/two#1")
    await asyncio.sleep(0.01)
    assert not seen
    await world.reopen()
    shop.gate.set()
    assert await world.result(token) == ["a", ["b"]]
    ((step, finished),) = seen
    assert step == "2/one#1"
    assert set(finished) == {"slow"}


async def test_gather_gives_each_branch_its_place_whichever_calls_first(
    open_world: OpenWorld,
) -> None:
    shop = Shop()
    first = [0, 1]

    async def branch(ctx: DurableContext, number: int) -> str:
        for _ in range(10 * first[number]):
            await asyncio.sleep(0)
        return await ctx.step(shop.note, f"branch {number}")

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        results = await ctx.gather(branch(ctx, 0), branch(ctx, 1))
        await ctx.step(shop.gate.wait, name="gate")
        return results

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "2/note#1")
    first.reverse()
    await world.reopen()
    shop.gate.set()
    assert await world.result(token) == ["branch 0", "branch 1"]
    assert shop.ran == {"branch 0": 1, "branch 1": 1}


async def test_a_cancel_reaches_the_branches_of_gather(open_world: OpenWorld) -> None:
    shop = Shop()

    async def branch(ctx: DurableContext, name: str) -> None:
        try:
            await ctx.step(shop.forever)
        finally:
            await ctx.step(shop.note, name)

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.gather(branch(ctx, "a"), branch(ctx, "b"))
        finally:
            assert shop.ran["a"] == shop.ran["b"] == 1
            await ctx.step(shop.note, "last")

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: shop.ran["forever"] == 2)
    await world.cancel(token)
    assert await world.failure(token) == ("canceled", "operation canceled")
    assert shop.ran == {"forever": 2, "a": 1, "b": 1, "last": 1}
