"""A handler whose code has changed under a running operation, and how to change it instead."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc.handler import service_handler

from handlers import DurableContext, durable_operation
from handlers.services import InvalidService, ServiceRegistry
from tests.handlers.test_steps import work
from tests.handlers.world import HOUR, World, until

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
Body = Callable[[DurableContext], Awaitable[Any]]


class Versions:
    """A handler that is replaced by another while its operations are running."""

    def __init__(self, old: Body) -> None:
        self.code = old
        self.ran: Counter[str] = Counter()

    async def run(self, ctx: DurableContext, input: Any) -> Any:
        return await self.code(ctx)


async def charge() -> str:
    return "charged"


async def pack() -> str:
    return "packed"


async def old(ctx: DurableContext) -> None:
    await ctx.step(charge)
    await ctx.sleep(timedelta(0))
    await ctx.step(pack)
    await ctx.sleep(HOUR)


async def renamed(ctx: DurableContext) -> None:
    await ctx.step(charge, name="bill")
    await ctx.sleep(timedelta(0))
    await ctx.step(pack)
    await ctx.sleep(HOUR)


async def dropped(ctx: DurableContext) -> None:
    await ctx.sleep(timedelta(0))
    await ctx.step(pack)
    await ctx.sleep(HOUR)


async def reordered(ctx: DurableContext) -> None:
    await ctx.step(charge)
    await ctx.step(pack)
    await ctx.sleep(timedelta(0))
    await ctx.sleep(HOUR)


async def inserted(ctx: DurableContext) -> None:
    await ctx.step(charge)
    await ctx.step(charge, name="audit")
    await ctx.sleep(timedelta(0))
    await ctx.step(pack)
    await ctx.sleep(HOUR)


async def returns(ctx: DurableContext) -> None:
    await ctx.step(charge)


async def raises(ctx: DurableContext) -> None:
    await ctx.step(charge)
    raise ValueError("new")


async def other_kind(ctx: DurableContext) -> None:
    await ctx.step(charge)
    await ctx.step(charge, name="sleep")


async def other_arguments(ctx: DurableContext) -> None:
    await ctx.step(lambda n: n, 1, name="charge")


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (
            renamed,
            "the journal has step 'charge#1' at this place, the code now asks for step 'bill#1'",
        ),
        (
            dropped,
            "the journal has step 'charge#1' at this place, the code now asks for timer 'sleep#1'",
        ),
        (
            reordered,
            "the journal has timer 'sleep#1' at this place, the code now asks for step 'pack#1'",
        ),
        (
            inserted,
            "the journal has timer 'sleep#1' at this place, the code now asks for step 'audit#1'",
        ),
        (
            returns,
            "the code ended without asking for timer 'sleep#1', which the journal has",
        ),
        (
            raises,
            "the code ended without asking for timer 'sleep#1', which the journal has",
        ),
        (
            other_kind,
            "the journal has timer 'sleep#1' at this place, the code now asks for step 'sleep#1'",
        ),
        (
            other_arguments,
            "the step 'charge#1' was recorded with other arguments than the code now gives it",
        ),
    ],
)
async def test_changed_code_pauses_and_resumes_when_it_is_put_back(
    open_world: OpenWorld, new: Body, reason: str
) -> None:
    versions = Versions(old)
    world = await open_world(work(versions.run))
    token = await world.start("run")
    await world.waits_at(token, "sleep#2")
    before = await world.journal(token)
    versions.code = new
    await world.reopen()
    assert await world.paused(token) == reason
    assert await world.journal(token) == before

    versions.code = old
    await world.engine.resume(token)
    await until(lambda: world.engine.live == 1)
    assert (await world.stored(token)).state == "running"
    assert await world.journal(token) == before


async def test_a_change_in_a_branch_is_found_too(open_world: OpenWorld) -> None:
    async def branch(ctx: DurableContext, name: str) -> None:
        await ctx.step(charge, name=name)
        await ctx.sleep(HOUR)

    def both(*names: str) -> Body:
        async def code(ctx: DurableContext) -> None:
            await asyncio.gather(*(branch(ctx, name) for name in names))

        return code

    versions = Versions(both("a", "b"))
    world = await open_world(work(versions.run))
    token = await world.start("run")
    await world.waits_at(token, "2/sleep#1")
    versions.code = both("b", "a")
    await world.reopen()
    assert await world.paused(token) in (
        "the journal has step '1/a#1' at this place, the code now asks for step '1/b#1'",
        "the journal has step '2/b#1' at this place, the code now asks for step '2/a#1'",
    )


@pytest.mark.parametrize("group", [False, True])
async def test_an_interrupted_call_is_no_change(open_world: OpenWorld, group: bool) -> None:
    refunded: list[str] = []
    gate = asyncio.Event()

    async def forever() -> None:
        await asyncio.Event().wait()

    async def refund(name: str) -> None:
        refunded.append(name)

    async def branch(ctx: DurableContext, name: str) -> None:
        try:
            await ctx.step(forever)
        finally:
            await ctx.step(refund, name)

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(charge)
        try:
            if group:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(branch(ctx, "a"))
                    tasks.create_task(branch(ctx, "b"))
            else:
                await branch(ctx, "main")
        finally:
            await ctx.step(refund, "last")
            await ctx.step(gate.wait, name="gate")

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "charge#1")
    await until(lambda: world.engine._runner._live[token].execution.in_step)  # type: ignore[union-attr]
    await world.cancel(token)
    await world.waits_at(token, "refund#1" if group else "refund#2")
    for _ in range(3):
        await world.reopen()
        await until(lambda: world.engine.live == 1)
        await asyncio.sleep(0)
    gate.set()
    assert await world.failure(token) == ("canceled", "operation canceled")
    assert sorted(refunded) == (["a", "b", "last"] if group else ["last", "main"])


async def test_patched_code_runs_beside_the_old(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    ran: Counter[str] = Counter()

    async def note(name: str) -> None:
        ran[name] += 1

    async def before(ctx: DurableContext) -> str:
        for number in range(3):
            await ctx.step(note, "old")
            if number == 1:
                await ctx.step(gate.wait, name="gate")
        return ctx.idempotency_key

    async def after(ctx: DurableContext) -> str:
        for number in range(3):
            await ctx.step(note, "new" if await ctx.patched("note new") else "old")
            if number == 1:
                await ctx.step(gate.wait, name="gate")
        return ctx.idempotency_key

    async def without_old(ctx: DurableContext) -> str:
        for number in range(3):
            await ctx.step(note, "new")
            if number == 1:
                await ctx.step(gate.wait, name="gate")
        return ctx.idempotency_key

    versions = Versions(before)
    world = await open_world(work(versions.run))
    begun_before = await world.start("run")
    await world.waits_at(begun_before, "note#2")
    versions.code = after
    await world.reopen()
    begun_after = await world.start("run")
    await world.waits_at(begun_after, "note#2")
    assert ran == {"old": 2, "new": 2}
    await world.reopen()
    gate.set()
    assert await world.result(begun_before) == f"{begun_before}/5"
    assert await world.result(begun_after) == f"{begun_after}/5"
    assert ran == {"old": 2, "new": 1 + 3}
    keys = [entry.key for entry in await world.journal(begun_before)]
    assert keys == ["note#1", "note#2", "gate#1", "patch:note new#3", "note#3"]

    gate.clear()
    again = await world.start("run")
    await world.waits_at(again, "note#2")
    versions.code = without_old
    await world.reopen()
    gate.set()
    assert await world.result(again) == f"{again}/5"


async def test_a_forgotten_await_is_a_mistake(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: str) -> None:
        if input == "step":
            ctx.step(charge)  # type: ignore[unused-coroutine]
        elif input == "sleep":
            ctx.sleep(HOUR)  # type: ignore[unused-coroutine]
        elif input == "closed":
            ctx.step(charge).close()
        else:
            await asyncio.gather(ctx.step(charge), ctx.step(pack))
            await asyncio.create_task(ctx.step(charge))
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step(pack))

    world = await open_world(work(body))
    for kind, what in (("step", "ctx.step(charge)"), ("sleep", "ctx.sleep(...)")):
        stored = await world.ended(await world.start("run", kind))
        assert (stored.state.value, stored.attempts) == ("failed", 0)
        assert f"{what} was never awaited" in (stored.error_detail or "")
    assert await world.result(await world.start("run", "closed")) is None
    assert await world.result(await world.start("run", "")) is None


async def first_done(ctx: DurableContext) -> None:
    await asyncio.wait([], return_when="FIRST_COMPLETED")


def _helper(ctx: DurableContext) -> Any:
    from asyncio import as_completed as done_first

    return done_first([ctx.sleep(HOUR)])


def test_going_on_with_whichever_is_first_is_refused() -> None:
    @service_handler(name="A")
    class AsCompleted:
        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> None:
            for done in asyncio.as_completed([ctx.sleep(HOUR)]):
                await done

    @service_handler(name="B")
    class InMethod:
        async def branch(self, ctx: DurableContext) -> None:
            await asyncio.wait([], return_when=asyncio.FIRST_EXCEPTION)

        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> None:
            await asyncio.gather(self.branch(ctx))

    @service_handler(name="C")
    class InFunction:
        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> None:
            await first_done(ctx)

    @service_handler(name="D")
    class InNested:
        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> None:
            def first() -> Any:
                return _helper(ctx)

            await first()

    for service, what in (
        (AsCompleted(), "asyncio.as_completed"),
        (InMethod(), "FIRST_EXCEPTION"),
        (InFunction(), "FIRST_COMPLETED"),
        (InNested(), "asyncio.as_completed"),
    ):
        with pytest.raises(InvalidService, match=what) as refused:
            ServiceRegistry({"default": [service]})
        assert "test_determinism.py, line " in str(refused.value)
        assert "ctx.gather" in str(refused.value)


def test_what_a_step_does_inside_is_its_own_business() -> None:
    @service_handler(name="Fine")
    class Fine:
        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> None:
            async def fetch() -> int:
                for done in asyncio.as_completed([asyncio.sleep(0)]):
                    await done
                return 1

            await ctx.step(fetch)
            await asyncio.wait([asyncio.ensure_future(ctx.sleep(HOUR))])

    assert len(list(ServiceRegistry({"default": [Fine()]}))) == 1
