"""Operations that run elsewhere: accepted, refused, completed early, late and never."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc import Content, HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
    operation_handler,
    service_handler,
)

from handlers import DurableContext, durable_operation
from handlers.requests import Started
from tests.handlers.world import HOUR, World, callback, error_of, links, until, value_of

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]
Result = StartOperationResultSync[Any] | StartOperationResultAsync


class Jobs(OperationHandler[Any, Any]):
    """A queue of jobs: each start does what the test says."""

    def __init__(self) -> None:
        self.on_start: Callable[[StartOperationContext, Any], Awaitable[Result]] = self.accept
        self.canceled: list[str] = []
        self.ran: Counter[str] = Counter()

    async def accept(self, ctx: StartOperationContext, input: Any) -> Result:
        ctx.outbound_links.extend(links("job"))
        return StartOperationResultAsync(f"job-{input}")

    async def start(self, ctx: StartOperationContext, input: Any) -> Result:
        self.ran["start"] += 1
        return await self.on_start(ctx, input)

    def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if token == "job-no":
            raise HandlerError("busy", type=HandlerErrorType.UNAVAILABLE)
        if token == "job-never":
            raise NotImplementedError
        self.canceled.append(token)


def service(jobs: Jobs) -> Any:
    @service_handler(name="Work")
    class Work:
        @operation_handler
        def job(self) -> OperationHandler[Any, Any]:
            return jobs

        @durable_operation
        async def run(self, ctx: DurableContext, input: Any) -> None:
            await ctx.sleep(HOUR)

    return Work()


async def test_accepted_then_completed(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    request = world.request("job", 1, callback=callback())
    answer = await world.engine.start(request)
    assert isinstance(answer, Started)
    assert answer.links == links("job")
    assert await world.engine.start(request) == answer
    assert jobs.ran["start"] == 1
    assert await world.engine.complete("job-1", {"x": 1})
    assert not await world.engine.complete(answer.token, {"x": 2})
    assert await world.result(answer.token) == {"x": 1}
    again = await world.engine.start(request)
    assert value_of(again) == {"x": 1}
    assert again.links == links("job")
    await until(lambda: world.sender.posts)
    assert world.sender.posts[0].get("nexus-link")


async def test_failed_and_canceled_from_outside(open_world: OpenWorld) -> None:
    world = await open_world(service(Jobs()))
    first, second = await world.start("job", 1), await world.start("job", 2)
    third = await world.start("job", 3)
    assert await world.engine.fail(first, "no")
    assert await world.engine.complete_canceled("job-2")
    assert await world.engine.complete(
        third, Content(headers={"content-type": "text/plain"}, data=b"raw")
    )
    assert await world.failure(first) == ("failed", "no")
    assert await world.failure(second) == ("canceled", "operation canceled")
    assert (await world.stored(third)).output == b"raw"


async def test_unknown_ambiguous_and_durable_tokens(open_world: OpenWorld) -> None:
    world = await open_world(service(Jobs()))
    await world.start("job", 1)
    await world.start("job", 1)
    durable = await world.start("run")
    for token, kind in (("nope", "NOT_FOUND"), ("job-1", "CONFLICT"), (durable, "CONFLICT")):
        error = await error_of(world.engine.complete(token, None))
        assert isinstance(error, HandlerError)
        assert error.type.value == kind
    error = await error_of(world.engine.resume(await world.start("job", 2)))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.CONFLICT


async def test_a_completion_may_come_before_start_returns(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    elsewhere: list[asyncio.Future[bool]] = []
    loop = asyncio.get_running_loop()
    worker: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:  # started before any start: knows nothing of it
        token = await worker.get()
        elsewhere.append(loop.create_task(world.engine.complete(token, "elsewhere")))

    running = loop.create_task(work())

    async def start(ctx: StartOperationContext, input: str) -> Result:
        if input == "here":
            assert await world.engine.complete("job-here", "at once")
        else:
            worker.put_nowait("job-there")
            await running
            await asyncio.sleep(0)
        return StartOperationResultAsync(f"job-{input}")

    jobs.on_start = start
    assert await world.result(await world.start("job", "here")) == "at once"
    assert await world.result(await world.start("job", "there")) == "elsewhere"
    assert await elsewhere[0]


async def test_a_stale_starting_context_does_not_swallow_completions(
    open_world: OpenWorld,
) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    go = asyncio.Event()
    late: list[asyncio.Future[bool]] = []

    async def start(ctx: StartOperationContext, input: Any) -> Result:
        async def job() -> bool:
            await go.wait()
            return await world.engine.complete("unknown", 1)

        late.append(asyncio.get_running_loop().create_task(job()))
        return StartOperationResultAsync("job-x")

    jobs.on_start = start
    await world.start("job")
    go.set()
    error = await error_of(late[0])
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.NOT_FOUND


async def test_later_starts_do_not_hold_an_unknown_completion_up(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    gates = [asyncio.Event(), asyncio.Event()]

    async def start(ctx: StartOperationContext, input: int) -> Result:
        await gates[input].wait()
        return StartOperationResultAsync(f"job-{input}")

    jobs.on_start = start
    starting = [asyncio.ensure_future(world.start("job", 0))]
    await until(lambda: jobs.ran["start"] == 1)
    completing = asyncio.ensure_future(error_of(world.engine.complete("unknown", 1)))
    await asyncio.sleep(0)
    starting.append(asyncio.ensure_future(world.start("job", 1)))
    await until(lambda: jobs.ran["start"] == 2)
    gates[0].set()
    assert isinstance(await asyncio.wait_for(completing, 5), HandlerError)
    gates[1].set()
    await asyncio.gather(*starting)


@pytest.mark.parametrize(
    "refusal",
    [
        HandlerError("full", type=HandlerErrorType.RESOURCE_EXHAUSTED),
        ValueError("broken"),
        None,
    ],
)
async def test_a_refused_start_leaves_nothing_and_may_be_repeated(
    open_world: OpenWorld, refusal: Exception | None
) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))

    async def start(ctx: StartOperationContext, input: Any) -> Result:
        if jobs.ran["start"] == 1:
            if refusal is None:
                await asyncio.Event().wait()
            else:
                raise refusal
        return StartOperationResultAsync("job-x")

    jobs.on_start = start
    request = world.request(
        "job", callback=callback(), operation_timeout=HOUR, request_timeout_seconds=0.02
    )
    with pytest.raises((HandlerError, ValueError)):
        await world.engine.start(request)
    answer = await world.engine.start(request)
    assert isinstance(answer, Started)
    assert len(await world.callbacks(answer.token)) == 1


async def test_an_unusable_token_is_refused(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))

    async def start(ctx: StartOperationContext, input: Any) -> Any:
        return StartOperationResultAsync("line\nbreak") if input else "no result"

    jobs.on_start = start
    for value in (0, 1):
        with pytest.raises(TypeError):
            await world.engine.start(world.request("job", value))


@pytest.mark.parametrize("how", ["result", "failure", "unsendable"])
async def test_a_start_may_end_at_once_and_two_requests_run_it_once(
    open_world: OpenWorld, how: str
) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    gate = asyncio.Event()

    async def start(ctx: StartOperationContext, input: Any) -> Result:
        ctx.outbound_links.extend(links("job"))
        await gate.wait()
        if how == "failure":
            raise OperationError("no", state=OperationErrorState.CANCELED)
        return StartOperationResultSync(object() if how == "unsendable" else "at once")

    jobs.on_start = start
    request = world.request("job", callback=callback())
    both = [asyncio.ensure_future(world.engine.start(request)) for _ in range(2)]
    await until(lambda: jobs.ran["start"] == 1)
    await asyncio.sleep(0.01)
    gate.set()
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert jobs.ran["start"] == 1
    for answer in answers:
        if how == "result":
            assert not isinstance(answer, BaseException)
            assert value_of(answer) == "at once"
            assert answer.links == links("job")
        else:
            assert isinstance(answer, OperationError)
    await until(lambda: world.sender.posts)


async def test_the_second_request_after_a_refusal_is_to_try_again(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    gate = asyncio.Event()

    async def start(ctx: StartOperationContext, input: Any) -> Result:
        await gate.wait()
        raise HandlerError("full", type=HandlerErrorType.RESOURCE_EXHAUSTED)

    jobs.on_start = start
    request = world.request("job")
    both = [asyncio.ensure_future(error_of(world.engine.start(request))) for _ in range(2)]
    await until(lambda: jobs.ran["start"] == 1)
    await asyncio.sleep(0.01)
    gate.set()
    kinds = [error.type.value for error in await asyncio.gather(*both)]  # type: ignore[union-attr]
    assert kinds == ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]


async def test_two_requests_at_once_are_accepted_once(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    gate = asyncio.Event()

    async def start(ctx: StartOperationContext, input: Any) -> Result:
        await gate.wait()
        return await jobs.accept(ctx, input)

    jobs.on_start = start
    request = world.request("job", 1)
    both = [asyncio.ensure_future(world.engine.start(request)) for _ in range(2)]
    await until(lambda: jobs.ran["start"] == 1)
    await asyncio.sleep(0.01)
    gate.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    assert jobs.ran["start"] == 1


async def test_a_request_that_is_cut_off_leaves_no_trace(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    request = world.request("job")
    starting = asyncio.ensure_future(world.engine.start(request))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert not jobs.ran
    assert isinstance(await world.engine.start(request), Started)


async def test_cancel_asks_the_handler_once(open_world: OpenWorld) -> None:
    jobs = Jobs()
    world = await open_world(service(jobs))
    token = await world.start("job", 1)
    await world.cancel(token)
    await world.cancel(token)
    assert jobs.canceled == ["job-1"]
    assert await world.engine.state(world.request("job").key, token) == "running"
    for name, kind in (("no", "UNAVAILABLE"), ("never", "NOT_IMPLEMENTED")):
        error = await error_of(world.cancel(await world.start("job", name)))
        assert isinstance(error, HandlerError)
        assert error.type.value == kind


@pytest.mark.parametrize("restart", [False, True])
async def test_a_deadline_ends_it(open_world: OpenWorld, restart: bool) -> None:
    world = await open_world(service(Jobs()))
    token = await world.start(
        "job", 1, operation_timeout=timedelta(milliseconds=100), callback=callback()
    )
    if restart:
        await world.reopen()
    assert await world.failure(token) == ("failed", "operation timed out")
    await until(lambda: world.sender.posts)


async def test_a_completion_that_is_cut_off_is_delivered(open_world: OpenWorld) -> None:
    world = await open_world(service(Jobs()))
    token = await world.start("job", 1, callback=callback())
    completing = asyncio.ensure_future(world.engine.complete(token, 1))

    def cut_off(write: Any) -> None:
        if type(write).__name__ == "Finish":
            completing.cancel()

    world.database.refuses = cut_off
    await until(lambda: world.sender.posts)
    assert completing.cancelled()
    await world.delivered(token)


async def test_prefer_wait_covers_it(open_world: OpenWorld) -> None:
    world = await open_world(service(Jobs()))
    request = world.request("job", 1, wait_seconds=5.0)
    waiting = asyncio.ensure_future(world.engine.start(request))
    await until(lambda: world.engine._endings._waiting)
    await world.engine.complete("job-1", "soon")
    assert value_of(await waiting) == "soon"
    brief = replace(request, request_id="other", wait_seconds=0.01)
    assert isinstance(await world.engine.start(brief), Started)
