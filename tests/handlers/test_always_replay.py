"""Every feature of the engine, with the handler run anew after everything that it records.

Each scenario is run twice: as it is, and with an operation that leaves memory after every entry of
its journal. Outcome, progress, links and what was done to the world have to be the same.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType, Link, OperationError, OperationErrorState

from handlers import DurableContext, RetryPolicy, StepError
from handlers.testing import Run, TestGateway
from tests.testing.orders import RUN, work

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
ONCE = RetryPolicy(max_attempts=1)


@dataclass
class World:
    """What steps do, and how often a handler was run."""

    done: list[str] = field(default_factory=list)
    runs: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    async def do(self, what: str) -> str:
        await asyncio.sleep(0)
        self.done.append(what)
        return what

    def on_thread(self, what: str) -> str:
        assert threading.current_thread() is not threading.main_thread()
        self.done.append(what)
        return what

    async def fail(self, what: str, times: int) -> str:
        self.done.append(what)
        self.failures[what] = self.failures.get(what, 0) + 1
        if self.failures[what] <= times:
            raise ConnectionError(what)
        return what

    async def refuse(self, what: str) -> None:
        self.done.append(what)
        raise OperationError("not sold here", state=OperationErrorState.FAILED)

    async def hang(self) -> None:
        self.done.append("hang")
        await asyncio.Event().wait()


Handler = Callable[[World, DurableContext], Awaitable[Any]]
Drive = Callable[[TestGateway, Run[Any]], Awaitable[None]]


async def alone(gateway: TestGateway, run: Run[Any]) -> None:
    """Let it go."""


async def canceled(gateway: TestGateway, run: Run[Any]) -> None:
    await run.until_waiting()
    await run.cancel()


async def told_twice(gateway: TestGateway, run: Run[Any]) -> None:
    await run.signal("word", "first")
    await run.until_waiting()
    await run.signal("word", "second")


# ---------------------------------------------------------------- steps


async def steps_in_a_row(world: World, ctx: DurableContext) -> list[str]:
    return [await ctx.step(world.do, what) for what in ("a", "b", "c")]


async def a_step_on_a_thread(world: World, ctx: DurableContext) -> list[str]:
    return [await ctx.step(world.on_thread, what) for what in ("a", "b")]


async def a_step_that_is_retried(world: World, ctx: DurableContext) -> list[str]:
    policy = RetryPolicy(initial_interval=timedelta(seconds=1), max_attempts=4)
    return [await ctx.step(world.fail, what, 3, retry=policy) for what in ("a", "b")]


async def a_step_that_is_retried_for_hours(world: World, ctx: DurableContext) -> str:
    policy = RetryPolicy(initial_interval=HOUR, max_interval=10 * HOUR, max_attempts=6)
    return await ctx.step(world.fail, "a", 5, retry=policy)


async def a_step_that_fails(world: World, ctx: DurableContext) -> str:
    try:
        await ctx.step(world.fail, "a", 9, retry=RetryPolicy(max_attempts=3))
    except StepError as error:
        return f"{error} {error.attempts} {await ctx.step(world.do, 'refund')}"
    return "?"


async def a_step_that_fails_uncaught(world: World, ctx: DurableContext) -> None:
    await ctx.step(world.do, "a")
    await ctx.step(world.fail, "b", 9, retry=ONCE)


async def a_step_that_takes_too_long(world: World, ctx: DurableContext) -> str:
    try:
        await ctx.step(world.hang, timeout=timedelta(milliseconds=20), retry=ONCE)
    except StepError as error:
        return error.type_name
    return "?"


async def a_step_that_ends_the_operation(world: World, ctx: DurableContext) -> None:
    await ctx.step(world.do, "a")
    await ctx.step(world.refuse, "b")


async def a_handler_that_fails_at_first(world: World, ctx: DurableContext) -> str:
    await ctx.step(world.do, "a")
    if world.failures.setdefault("handler", 0) < 2:
        world.failures["handler"] += 1
        raise RuntimeError("try again")
    return await ctx.step(world.do, "b")


async def a_handler_that_gives_up(world: World, ctx: DurableContext) -> None:
    await ctx.step(world.do, "a")
    raise HandlerError("bad order", type=HandlerErrorType.BAD_REQUEST)


# ---------------------------------------------------------------- branches


async def branches(world: World, ctx: DurableContext) -> list[Any]:
    return await ctx.gather(*[ctx.step(world.do, what) for what in "abcd"])


async def nested_branches(world: World, ctx: DurableContext) -> list[Any]:
    async def branch(name: str) -> list[Any]:
        first = await ctx.step(world.do, name)
        rest = await ctx.gather(ctx.step(world.do, f"{name}1"), ctx.step(world.fail, f"{name}2", 2))
        await ctx.sleep(HOUR)
        return [first, *rest]

    return await ctx.gather(branch("x"), branch("y"), ctx.sleep(2 * HOUR))


async def branches_of_asyncio(world: World, ctx: DurableContext) -> list[Any]:
    async def branch(name: str) -> list[str]:
        return [await ctx.step(world.do, f"{name}{n}") for n in range(3)]

    return await asyncio.gather(*[branch(name) for name in "xyz"])


async def a_task_group(world: World, ctx: DurableContext) -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ctx.step(world.do, what)) for what in "abc"]
    return [task.result() for task in tasks]


async def a_branch_that_fails(world: World, ctx: DurableContext) -> str:
    try:
        await ctx.gather(
            ctx.step(world.do, "a"), ctx.step(world.fail, "b", 9, retry=ONCE), ctx.sleep(HOUR)
        )
    except StepError as error:
        return f"{error.step} {await ctx.step(world.do, 'refund')}"
    return "?"


# ---------------------------------------------------------------- waits


async def sleeps(world: World, ctx: DurableContext) -> list[str]:
    began = ctx.now()
    for what in ("a", "b"):
        await ctx.step(world.do, what)
        await ctx.sleep(24 * HOUR)
    return [str((ctx.now() - began).days), *world.done]


async def waits_for_signals(world: World, ctx: DurableContext) -> list[str]:
    first = await ctx.wait_for("word", str)
    await ctx.step(world.do, first)
    second = await ctx.wait_for("word", str, timeout=HOUR)
    return [first, second]


async def a_wait_that_times_out(world: World, ctx: DurableContext) -> str:
    try:
        await ctx.wait_for("never", timeout=HOUR)
    except TimeoutError:
        return await ctx.step(world.do, "late")
    return "?"


async def signals_in_branches(world: World, ctx: DurableContext) -> list[Any]:
    return await ctx.gather(
        ctx.wait_for("word", str), ctx.wait_for("word", str), ctx.step(world.do, "a")
    )


# ---------------------------------------------------------------- ends


async def cleans_up(world: World, ctx: DurableContext) -> None:
    await ctx.step(world.do, "pay")
    try:
        await ctx.sleep(HOUR)
    finally:
        await ctx.step(world.do, "refund")
        await ctx.sleep(timedelta(seconds=5))
        await ctx.gather(ctx.step(world.do, "mail"), ctx.step(world.do, "log"))


async def makes_something_of_it(world: World, ctx: DurableContext) -> str:
    try:
        await ctx.wait_for("never")
    except asyncio.CancelledError:
        await ctx.step(world.do, "refund")
        return f"refunded {ctx.cancellation_requested}"
    return "?"


async def branches_that_are_canceled(world: World, ctx: DurableContext) -> None:
    async def branch(name: str) -> None:
        try:
            await ctx.sleep(HOUR)
        finally:
            await ctx.step(world.do, f"undo {name}")

    try:
        await ctx.gather(branch("a"), branch("b"), ctx.wait_for("never"))
    finally:
        await ctx.step(world.do, "undo all")


async def a_timeout_of_the_handler_s_own(world: World, ctx: DurableContext) -> str:
    try:
        async with asyncio.timeout(0.05):
            await ctx.wait_for("never")
    except TimeoutError:
        return await ctx.step(world.do, "late")
    return "?"


# ---------------------------------------------------------------- the rest


async def the_same_on_every_run(world: World, ctx: DurableContext) -> bool:
    drawn = [ctx.random(), str(ctx.uuid()), ctx.now().isoformat(), ctx.idempotency_key]
    await ctx.step(world.do, "a")
    drawn += [ctx.random(), str(ctx.uuid()), ctx.now().isoformat(), ctx.idempotency_key]
    recorded = await ctx.step(lambda values: values, drawn, name="record")
    await ctx.sleep(HOUR)
    return bool(recorded == drawn)


async def shows_progress(world: World, ctx: DurableContext) -> None:
    for n in range(4):
        ctx.progress(n / 4, f"step {n}")
        ctx.add_link(Link(url=f"https://example.com/{n}", type="example.Step"))
        await ctx.step(world.do, str(n))


async def takes_changed_code(world: World, ctx: DurableContext) -> list[bool]:
    first = await ctx.patched("first")
    await ctx.step(world.do, "a")
    second = await ctx.patched("second")
    await ctx.step(world.do, "b")
    return [first, second, await ctx.patched("second")]


async def calls_others(world: World, ctx: DurableContext) -> list[Any]:
    first = await ctx.call(("desk", "answer"), "a", endpoint="other")
    both = await ctx.gather(
        ctx.call(("desk", "answer"), "b", endpoint="other"), ctx.step(world.do, "c")
    )
    try:
        await ctx.call(("desk", "refuse"), "d", endpoint="other")
    except OperationError as error:
        return [first, *both, error.message]
    return ["?"]


async def swallows_what_it_must_not(world: World, ctx: DurableContext) -> list[str]:
    done: list[str] = []
    for what in ("a", "b", "c"):
        try:
            done.append(await ctx.step(world.do, what))
        except BaseException:  # noqa: BLE001  # what a handler must not do, and one day does
            world.done.append("swallowed")
            await ctx.step(world.do, "must not happen")
    return done


@dataclass(frozen=True)
class Scenario:
    handler: Handler
    drive: Drive = alone
    timeout: timedelta | None = None

    def __str__(self) -> str:
        return " ".join([self.handler.__name__, *([] if self.drive is alone else ["driven"])])


SCENARIOS = [
    *map(
        Scenario,
        [
            steps_in_a_row,
            a_step_on_a_thread,
            a_step_that_is_retried,
            a_step_that_is_retried_for_hours,
            a_step_that_fails,
            a_step_that_fails_uncaught,
            a_step_that_takes_too_long,
            a_step_that_ends_the_operation,
            a_handler_that_fails_at_first,
            a_handler_that_gives_up,
            branches,
            nested_branches,
            branches_of_asyncio,
            a_task_group,
            a_branch_that_fails,
            sleeps,
            a_wait_that_times_out,
            a_timeout_of_the_handler_s_own,
            the_same_on_every_run,
            shows_progress,
            takes_changed_code,
            calls_others,
        ],
    ),
    Scenario(waits_for_signals, told_twice),
    Scenario(signals_in_branches, told_twice),
    Scenario(cleans_up, canceled),
    Scenario(cleans_up, timeout=timedelta(minutes=1)),
    Scenario(makes_something_of_it, canceled),
    Scenario(makes_something_of_it, timeout=timedelta(minutes=1)),
    Scenario(branches_that_are_canceled, canceled),
    Scenario(branches_that_are_canceled, timeout=timedelta(minutes=1)),
]


@dataclass(frozen=True)
class Outcome:
    state: str
    result: Any
    progress: Any
    links: str
    done: tuple[str, ...]
    steps: tuple[tuple[str, Any, str | None], ...]


async def play(scenario: Scenario, *, always_replay: bool) -> tuple[Outcome, World, int]:
    world = World()

    async def handler(ctx: DurableContext, input: Any) -> Any:
        world.runs += 1
        return await scenario.handler(world, ctx)

    service = work(handler, timeout=scenario.timeout)
    calls = {"other": {"answer": world.do, "refuse": world.refuse}}
    async with TestGateway([service], always_replay=always_replay, calls=calls) as gateway:
        run = await gateway.start(RUN, None)
        await scenario.drive(gateway, run)
        try:
            result = await run.result()
        except OperationError as error:
            result = f"{error.state.value}: {error.message}"
        stored = await gateway.stored(run.token)
        shown = (scenario.handler is not the_same_on_every_run) * [
            (step.key, step.output, step.error)
            for step in run.steps
            if step.kind in {"step", "signal"}
        ]
        outcome = Outcome(
            stored.state.value,
            result,
            await run.progress(),
            stored.handler_links,
            tuple(sorted(world.done)),
            tuple(sorted(shown)),
        )
        return outcome, world, len(run.steps)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_replay_after_every_entry_changes_nothing(scenario: Scenario) -> None:
    plain, _, recorded = await play(scenario, always_replay=False)
    replayed, world, _ = await play(scenario, always_replay=True)
    assert replayed == plain
    # Otherwise nothing was replayed, and nothing shown.
    assert world.runs >= min(recorded, 2)


async def test_a_handler_that_swallows_leaving_does_nothing_more() -> None:
    outcome, world, _ = await play(Scenario(swallows_what_it_must_not), always_replay=True)
    assert outcome.result == ["a", "b", "c"]
    assert "must not happen" not in world.done
    assert "swallowed" in world.done


@pytest.mark.parametrize("when", ["crash_after", "crash_before"])
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(nested_branches),
        Scenario(the_same_on_every_run),
        Scenario(cleans_up, canceled),
    ],
    ids=str,
)
async def test_a_crash_at_every_entry_changes_no_outcome(scenario: Scenario, when: str) -> None:
    plain = World()

    def service_of(world: World) -> Any:
        return work(lambda ctx, _: scenario.handler(world, ctx), timeout=scenario.timeout)

    async def ends(world: World, **faults: Any) -> tuple[str, Any, list[str]]:
        async with TestGateway([service_of(world)], **faults) as gateway:
            run = await gateway.start(RUN, None)
            await scenario.drive(gateway, run)
            try:
                result = await run.result()
            except OperationError as error:
                result = error.message
            return await run.state(), result, [step.key for step in run.steps]

    state, result, keys = await ends(plain)
    for key in keys:
        world = World()
        assert (await ends(world, **{when: key}))[:2] == (state, result), key
        assert set(world.done) == set(plain.done), key
