"""Crashes at every step, drains at any moment: the result is the same."""

import asyncio
import contextvars
import gc
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from handlers import DurableContext, RetryPolicy, StepError
from handlers.clock import now_ms
from handlers.engine_settings import EngineSettings
from handlers.store.claims import ClaimOwn
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, IN_MEMORY, World, callback, links, until, until_found

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=1), max_attempts=2)


class Shop:
    """A handler with steps, a sleep, branches, a failing step and a cancel."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.arrived = 0
        self.waiting = asyncio.Event()

    async def note(self, name: str) -> str:
        self.ran[name] += 1
        return f"{name}!"

    def on_thread(self, name: str) -> str:
        self.ran[name] += 1
        return f"{name}?"

    async def breaks(self) -> None:
        self.ran["breaks"] += 1
        raise ValueError("broken")

    async def branch(self, ctx: DurableContext, name: str) -> str:
        first = await ctx.step(self.note, f"{name}1")
        await ctx.sleep(timedelta(milliseconds=1))
        return first + await ctx.step(self.on_thread, f"{name}2")

    async def endless(self, ctx: DurableContext, name: str) -> None:
        await ctx.step(self.note, name)
        self.arrived += 1
        if self.arrived == 2:
            self.waiting.set()
        await ctx.sleep(HOUR)

    async def run(self, ctx: DurableContext, input: Any) -> list[str]:
        seen = [str(ctx.uuid()), await ctx.step(self.note, "a")]
        seen += await asyncio.gather(self.branch(ctx, "b"), self.branch(ctx, "c"))
        await ctx.sleep(timedelta(milliseconds=5))
        try:
            await ctx.step(self.breaks, retry=QUICK)
        except StepError as error:
            seen.append(str(error))
        try:
            await asyncio.gather(self.endless(ctx, "d"), self.endless(ctx, "e"))
        except asyncio.CancelledError:
            seen.append(await ctx.step(self.note, "refund"))
            seen += await asyncio.gather(self.branch(ctx, "f"), self.branch(ctx, "g"))
        seen.append(await ctx.step(self.on_thread, "last"))
        return seen


@pytest.mark.parametrize("suspended", [False, True])
@pytest.mark.parametrize("last_is_written", [False, True])
async def test_a_crash_at_every_entry_changes_nothing(
    open_world: OpenWorld, last_is_written: bool, suspended: bool
) -> None:
    crashes = 0
    settings = EngineSettings(suspend_after_seconds=0.0) if suspended else IN_MEMORY
    entries = 22 + suspended  # the wait between two attempts, which then outlives the process
    while True:
        shop = Shop()
        world = await open_world(work(shop.run), settings=settings)
        await world.reopen(crashes, last_is_written=last_is_written)
        token = await world.start("run")

        async def cancel_when_it_waits(world: World = world, shop: Shop = shop) -> None:
            await shop.waiting.wait()
            await world.cancel(token)  # noqa: B023  # within this turn of the loop

        cancelling = asyncio.ensure_future(cancel_when_it_waits())
        dying = asyncio.ensure_future(world.database.dead.wait())
        ending = asyncio.ensure_future(world.ended(token))
        await asyncio.wait([dying, ending], return_when=asyncio.FIRST_COMPLETED)
        survived = ending.done()
        for task in (dying, ending):
            task.cancel()
        await asyncio.gather(dying, ending, return_exceptions=True)
        if not survived:
            cancelled = cancelling.done()
            cancelling.cancel()
            await world.kill()
            shop.waiting.clear()
            shop.arrived = 0
            await world.open()
            if not cancelled:
                cancelling = asyncio.ensure_future(cancel_when_it_waits())
        result = await world.result(token)
        await asyncio.gather(cancelling, return_exceptions=True)
        assert result[1:] == [
            "a!", "b1!b2?", "c1!c2?", "ValueError: broken",
            "refund!", "f1!f2?", "g1!g2?", "last?",
        ]  # fmt: skip
        again = {name: n for name, n in shop.ran.items() if n > 1 and name != "breaks"}
        assert sum(again.values()) - len(again) <= (0 if survived else 2), again
        keys = [entry.key for entry in await world.journal(token)]
        assert len(set(keys)) == len(keys) == entries, " ".join(keys)
        await world.kill()
        if survived:
            break
        crashes += 1
    assert crashes == entries


async def test_a_drain_lets_running_steps_end_and_nothing_new_begin(
    open_world: OpenWorld,
) -> None:
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    async def slow(name: str) -> str:
        ran[name] += 1
        await gate.wait()
        return name

    async def quick(name: str) -> None:
        ran[name] += 1

    async def branch(ctx: DurableContext, name: str) -> None:
        try:
            await ctx.step(slow, name)
            await ctx.step(quick, f"{name} after")
        finally:
            await ctx.step(quick, f"{name} finally")

    async def napping(ctx: DurableContext) -> None:
        await ctx.sleep(timedelta(milliseconds=50))
        await ctx.step(quick, "woken")

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await asyncio.gather(branch(ctx, "x"), branch(ctx, "y"), napping(ctx))
        except asyncio.CancelledError:
            await ctx.step(quick, "refund")

    world = await open_world(work(body))
    token = await world.start("run")
    sleeper = await world.start("run")
    await until(lambda: ran["x"] + ran["y"] == 4)
    naps: list[int] = []
    for started in (token, sleeper):
        await world.waits_at(started, "3/sleep#1")
        naps += [entry.wake_at for entry in await world.journal(started) if entry.wake_at]
    closing = asyncio.ensure_future(world.close())
    await until(lambda: now_ms() > max(naps))
    gate.set()
    await closing
    assert ran == {"x": 2, "y": 2}

    await world.open()
    await world.result(token)
    await world.result(sleeper)
    assert (ran["x"], ran["y"], ran["x after"], ran["y finally"]) == (2, 2, 2, 2)
    assert ran["woken"] == 2
    assert ran["refund"] == 0


async def test_a_drain_hands_back_what_does_not_end_in_time(open_world: OpenWorld) -> None:
    finals: list[str] = []
    gate = asyncio.Event()
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        await gate.wait()

    async def body(ctx: DurableContext, input: str) -> str:
        try:
            if input == "hang":
                await ctx.step(hang)
            elif input == "sleep":
                await ctx.sleep(timedelta(milliseconds=200))
            elif input == "fails" and not gate.is_set():
                raise ValueError("at first")
        finally:
            if not gate.is_set():
                finals.append(input)
        return input

    world = await open_world(work(body))
    tokens = {name: await world.start("run", name) for name in ("hang", "sleep", "fails")}
    await started.wait()
    await until(lambda: finals == ["fails"])
    tokens["late"] = (await world.engine.start(world.request("run", "late"))).token  # type: ignore[union-attr]
    await world.close(0.01)
    gate.set()
    await world.open()
    for name, token in tokens.items():
        assert await world.result(token) == name
        assert (await world.stored(token)).epoch <= 2


async def test_a_drain_keeps_the_result_of_a_thread(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    may_end = threading.Event()

    def charge() -> int:
        ran["charge"] += 1
        may_end.wait(10)
        return 5

    async def body(ctx: DurableContext, input: Any) -> int:
        return await ctx.step(charge)

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: ran)
    closing = asyncio.ensure_future(world.close())
    await asyncio.sleep(0.01)
    may_end.set()
    await closing
    await world.open()
    assert await world.result(token) == 5
    assert ran["charge"] == 1


async def test_a_drain_right_after_a_start_runs_nothing(open_world: OpenWorld) -> None:
    ran: list[int] = []
    gate = asyncio.Event()

    async def charge() -> None:
        ran.append(1)

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge)

    world = await open_world(work(body))
    starting = asyncio.ensure_future(world.engine.start(world.request("run")))
    await until(lambda: world.engine.live)
    await world.close()
    gate.set()
    token = (await starting).token  # type: ignore[union-attr]
    assert len(ran) <= 1
    await world.open()
    await world.ended(token)
    assert len(ran) == 1


async def test_nothing_is_kept_of_an_operation_that_has_ended(open_world: OpenWorld) -> None:
    contexts: weakref.WeakSet[DurableContext] = weakref.WeakSet()

    async def body(ctx: DurableContext, input: int) -> int:
        contexts.add(ctx)

        async def closure() -> int:
            return input + int(ctx.cancellation_requested)

        if input % 3 == 1:
            await ctx.sleep(timedelta(milliseconds=1))
        ctx.progress(0.5, "half")
        await asyncio.gather(ctx.step(closure), ctx.step(closure))
        return input

    world = await open_world(work(body))
    tokens = []
    for first in range(0, 1000, 100):
        answers = await asyncio.gather(
            *(
                world.engine.start(
                    world.request("run", n, callback=callback(), operation_timeout=HOUR)
                )
                for n in range(first, first + 100)
            )
        )
        tokens += [answer.token for answer in answers]  # type: ignore[union-attr]
    await until(lambda: len(world.sender.posts) == 1000, 20)
    await until(lambda: world.engine.live == 0 and world.delivery.held == 0)
    gc.collect()
    assert len(contexts) == 0
    assert not world.engine._endings._waiting
    assert not world.engine._endings._tasks
    assert not world.delivery.held
    assert not world.delivery._tasks
    assert len(asyncio.all_tasks()) < 10


async def test_progress_and_links_are_kept(open_world: OpenWorld) -> None:
    gate = asyncio.Event()

    async def body(ctx: DurableContext, input: Any) -> None:
        for n in range(5):
            ctx.progress(n, f"step {n}")
        for link in links("one", "two", "one"):
            ctx.add_link(link)
        await ctx.step(gate.wait, name="gate")

    world = await open_world(work(body))
    token = await world.start("run", callback=callback(), trace_context=None)

    async def is_shown() -> bool:
        return (await world.stored(token)).progress == '{"fraction": 1.0, "message": "step 4"}'

    await until_found(is_shown)
    await world.reopen()
    gate.set()
    await world.ended(token)
    await until(lambda: world.sender.posts)
    assert "".join(world.sender.posts[0].get("nexus-link")).count("example/") == 2


@pytest.mark.parametrize("cancels", [False, True])
async def test_an_owner_that_was_overtaken_writes_no_more(
    open_world: OpenWorld, cancels: bool
) -> None:
    gate = asyncio.Event()
    cleaned_up: list[str] = []

    async def refund() -> None:
        cleaned_up.append("refund")

    async def body(ctx: DurableContext, input: Any) -> None:
        try:
            await ctx.step(gate.wait, name="gate")
        finally:
            await ctx.step(refund)

    world = await open_world(work(body))
    token = await world.start("run")
    await asyncio.sleep(0.01)
    # Another process takes it.
    assert await world.database.write(ClaimOwn(world.lease.id, [token]))
    if cancels:
        await world.cancel(token)
    else:
        gate.set()
    await until(lambda: world.engine.live == 0)
    assert cleaned_up == []
    assert await world.journal(token) == []
    assert (await world.stored(token)).state == "running"
    gate.set()
    await world.reopen()
    await world.ended(token)
    assert cleaned_up == ["refund"]


async def test_a_context_is_refused_outside_of_its_handler(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> str:
        async def elsewhere() -> str:
            try:
                await ctx.sleep(HOUR)
            except RuntimeError as error:
                return str(error)
            return ""

        outside = contextvars.Context()
        return await asyncio.create_task(elsewhere(), context=outside)

    world = await open_world(work(body))
    message = await world.result(await world.start("run"))
    assert message == "a DurableContext works only inside its own handler"
