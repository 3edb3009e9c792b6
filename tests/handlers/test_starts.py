"""Starts, replays, callbacks, and what a caller may ask."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType, Link, OperationError, OperationErrorState
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from handlers import DurableContext, durable_operation
from handlers.engine import EngineSettings
from handlers.requests import Started
from nexus_spec.limits import PAYLOAD_BYTES
from tests.handlers.test_steps import work
from tests.handlers.world import (
    HOUR,
    World,
    callback,
    error_of,
    links,
    until,
    until_found,
    value_of,
)

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


async def gated(gate: asyncio.Event, result: Any = "done") -> Any:
    async def body(ctx: DurableContext, input: Any) -> Any:
        ctx.add_link(Link(url="https://here.example/", type="example.Link"))
        await ctx.step(gate.wait, name="gate")
        if isinstance(result, Exception):
            raise result
        return result

    return work(body)


async def test_a_known_request_gets_the_first_token_and_then_the_result(
    open_world: OpenWorld,
) -> None:
    gate = asyncio.Event()
    world = await open_world(await gated(gate))
    request = world.request("run", {"a": 1})
    first, second = await asyncio.gather(
        world.engine.start(request), world.engine.start(replace(request, wait_seconds=0.01))
    )
    assert isinstance(first, Started)
    assert isinstance(second, Started)
    assert first.token == second.token
    again = await world.engine.start(request)
    assert isinstance(again, Started)
    assert again.links == (Link(url="https://here.example/", type="example.Link"),)
    assert await world.engine.result(request.key, first.token, 0) is None

    other = replace(request, body=b'{"a": 2}')
    error = await error_of(world.engine.start(other))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.CONFLICT
    headers = {**request.content_headers, "content-language": "en"}
    with pytest.raises(HandlerError):
        await world.engine.start(replace(request, content_headers=headers))
    lengthy = {**request.content_headers, "content-length": "7"}
    assert isinstance(await world.engine.start(replace(request, content_headers=lengthy)), Started)

    gate.set()
    await world.result(first.token)
    answer = await world.engine.start(request)
    assert value_of(answer) == "done"
    assert answer.links == again.links
    result = await world.engine.result(request.key, first.token, 0)
    assert result is not None
    assert value_of(result) == "done"
    assert await world.engine.state(request.key, first.token) == "succeeded"


async def test_prefer_wait_answers_with_the_end(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    failure = OperationError("no", state=OperationErrorState.FAILED)
    world = await open_world(await gated(gate, failure))
    waiting = asyncio.ensure_future(world.engine.start(world.request("run", wait_seconds=10)))
    await until(lambda: world.engine._endings._waiting)
    gate.set()
    assert str(await error_of(waiting)) == "no"

    gate.clear()
    waiting = asyncio.ensure_future(world.engine.start(world.request("run", wait_seconds=10)))
    await until(lambda: world.engine._endings._waiting)
    world.engine.release_waiters()
    assert isinstance(await waiting, Started)
    answer = await world.engine.start(world.request("run", wait_seconds=10))
    assert isinstance(answer, Started)


async def test_a_token_counts_only_with_all_that_belongs_to_it(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    world = await open_world(await gated(gate))
    request = world.request("run")
    token = await world.start("run")
    for key in (replace(request.key, caller="mallory"), replace(request.key, service="Other")):
        for asking in (
            world.engine.result(key, token, 0),
            world.engine.state(key, token),
            world.engine.cancel(key, token, {}),
        ):
            error = await error_of(asking)
            assert isinstance(error, HandlerError)
            assert error.type is HandlerErrorType.NOT_FOUND
    error = await error_of(world.engine.state(request.key, "nope"))
    assert str(error) == "no such operation"
    await world.engine.cancel_by_operator(token)
    assert (await world.failure(token))[0] == "canceled"


async def test_inline_operations_are_answered_and_not_recorded(open_world: OpenWorld) -> None:
    threads: list[str] = []

    @service_handler(name="Work")
    class Work:
        @sync_operation
        async def quote(self, ctx: StartOperationContext, input: int) -> int:
            ctx.outbound_links.extend(links("quoted"))
            return input + 1

        @sync_operation
        def threaded(self, ctx: StartOperationContext, input: str) -> str:
            threads.append(threading.current_thread().name)
            if input == "stop":
                next(iter(()))
            return input

        @sync_operation
        async def large(self, ctx: StartOperationContext, input: int) -> str:
            return "x" * input

        @sync_operation
        async def odd(self, ctx: StartOperationContext, input: None) -> object:
            return object()

    world = await open_world(Work(), settings=EngineSettings(handler_threads=1))
    answer = await world.engine.start(world.request("quote", 1))
    assert value_of(answer) == 2
    assert answer.links == links("quoted")
    assert value_of(await world.engine.start(world.request("threaded", "x"))) == "x"
    assert threads[0].startswith("nexus-handler")
    with pytest.raises(RuntimeError):
        await world.engine.start(world.request("threaded", "stop", request_timeout_seconds=5))
    error = await error_of(world.engine.start(world.request("large", PAYLOAD_BYTES)))
    assert isinstance(error, HandlerError)
    assert error.retryable is False
    with pytest.raises(TypeError, match="Work/odd"):
        await world.engine.start(world.request("odd"))
    error = await error_of(world.engine.start(world.request("quote", "x")))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.BAD_REQUEST
    with pytest.raises(HandlerError) as refused:
        await world.engine.cancel(world.request("quote").key, "t", {})
    assert refused.value.type is HandlerErrorType.NOT_IMPLEMENTED


@pytest.mark.parametrize(
    ("how", "expected"),
    [("", HandlerError), ("holds on", HandlerError), ("raises", ValueError)],
)
async def test_an_inline_handler_is_cut_off_at_the_request_timeout(
    open_world: OpenWorld, how: str, expected: type[Exception]
) -> None:
    @service_handler(name="Work")
    class Work:
        @sync_operation
        async def slow(self, ctx: StartOperationContext, input: str) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if input == "raises":
                    raise ValueError("cut off") from None
                if input == "holds on":
                    return "late"
                raise
            return ""

    world = await open_world(Work())
    request = world.request("slow", how, request_timeout_seconds=0.01)
    with pytest.raises(expected) as raised:
        await world.engine.start(request)
    if isinstance(raised.value, HandlerError):
        assert raised.value.type is HandlerErrorType.REQUEST_TIMEOUT
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_thread_that_outlives_its_request_keeps_its_place(open_world: OpenWorld) -> None:
    gate = threading.Event()

    @service_handler(name="Work")
    class Work:
        @sync_operation
        def threaded(self, ctx: StartOperationContext, input: str) -> str:
            if input == "hang":
                gate.wait(10)
            return input

    world = await open_world(Work(), settings=EngineSettings(handler_threads=1))
    request = world.request("threaded", "hang", request_timeout_seconds=0.01)
    error = await error_of(world.engine.start(request))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.REQUEST_TIMEOUT
    error = await error_of(world.engine.start(world.request("threaded", "x")))
    assert isinstance(error, HandlerError)
    assert error.type is HandlerErrorType.UNAVAILABLE
    gate.set()
    await until(lambda: world.engine._handler_threads._taken == 0)
    assert value_of(await world.engine.start(world.request("threaded", "x"))) == "x"


async def test_a_callers_disconnect_ends_an_inline_handler(open_world: OpenWorld) -> None:
    @service_handler(name="Work")
    class Work:
        @sync_operation
        async def slow(self, ctx: StartOperationContext, input: None) -> None:
            await ctx.task_cancellation.wait_until_cancelled()
            assert ctx.task_cancellation.is_cancelled()
            assert ctx.task_cancellation.wait_until_cancelled_sync(0)
            await asyncio.Event().wait()

    world = await open_world(Work())
    gone = asyncio.Event()

    async def disconnected() -> None:
        await gone.wait()

    starting = asyncio.ensure_future(
        world.engine.start(world.request("slow", disconnected=disconnected))
    )
    await asyncio.sleep(0.01)
    gone.set()
    with pytest.raises(Exception, match=r"^$") as raised:
        await starting
    assert type(raised.value).__name__ == "ClientDisconnected"


async def test_retries_add_callbacks_up_to_ten(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    world = await open_world(await gated(gate))
    request = world.request("run", callback=callback(1), headers={"traceparent": "00-1-2-01"})
    first = await world.engine.start(request)
    assert isinstance(first, Started)
    for n in [1, *range(1, 11), 2]:
        await world.engine.start(replace(request, callback=callback(n)))
    with pytest.raises(HandlerError, match="at most 10 callbacks"):
        await world.engine.start(replace(request, callback=callback(11)))
    gate.set()
    await until(lambda: len(world.sender.posts) == 10)
    post = world.sender.posts[0]
    stored = await world.stored(first.token)
    assert json.loads(post.body) == "done"
    assert post.get("content-type") == ["application/json"]
    assert post.get("nexus-operation-state") == ["succeeded"]
    assert post.get("nexus-operation-token") == [first.token]
    assert post.get("nexus-operation-start-time")[0].endswith("GMT")
    assert post.get("nexus-operation-close-time")[0].endswith("Z")
    assert post.get("nexus-link") == ['<https://here.example/>; type="example.Link"']
    assert post.get("traceparent") == ["00-1-2-01"]
    assert sorted(p.get("token")[0] for p in world.sender.posts) == sorted(
        f"t{n}" for n in range(1, 11)
    )
    assert stored.state == "succeeded"
    await until(lambda: world.delivery.held == 0)


async def test_a_callback_added_after_the_end_is_called_at_once(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    gate.set()
    world = await open_world(await gated(gate))
    request = world.request("run")
    first = await world.engine.start(request)
    assert isinstance(first, Started)
    await world.result(first.token)
    # Also where the request is cut off in the middle.
    adding = asyncio.ensure_future(world.engine.start(replace(request, callback=callback(1))))

    def cut_off(write: Any) -> None:
        if type(write).__name__ == "AddCallback":
            adding.cancel()

    world.database.refuses = cut_off
    await until(lambda: len(world.sender.posts) == 1)
    assert value_of(await world.engine.start(replace(request, callback=callback(2)))) == "done"
    await until(lambda: len(world.sender.posts) == 2)
    await world.delivered(first.token)


async def test_a_start_that_is_cut_off_runs_all_the_same(open_world: OpenWorld) -> None:
    gate = asyncio.Event()
    gate.set()
    world = await open_world(await gated(gate))
    request = world.request("run", callback=callback())
    starting = asyncio.ensure_future(world.engine.start(request))
    await asyncio.sleep(0)
    starting.cancel()
    await until(lambda: world.sender.posts)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("secret \udcff"), "the operation's handler failed"),
        (HandlerError("gone", type=HandlerErrorType.NOT_FOUND), "gone"),
        (OperationError("plain", state=OperationErrorState.FAILED), "plain"),
    ],
)
async def test_a_handlers_errors(open_world: OpenWorld, error: Exception, expected: str) -> None:
    runs: list[int] = []

    async def body(ctx: DurableContext, input: Any) -> None:
        runs.append(1)
        raise error

    world = await open_world(work(body))
    token = await world.start("run")
    if isinstance(error, ValueError):
        for n in range(1, 5):  # a restart does not wait for the backoff

            async def has_failed(n: int = n) -> bool:
                return (await world.stored(token)).attempts == n

            await until_found(has_failed)
            await world.reopen()
    assert await world.failure(token) == ("failed", expected)
    stored = await world.stored(token)
    if isinstance(error, ValueError):
        assert len(runs) == 5
        assert "ValueError: secret \\udcff" in (stored.error_detail or "")
        assert b"secret" not in (stored.failure or b"")


async def test_the_engine_retries_by_itself_and_minds_own_cancellations(
    open_world: OpenWorld,
) -> None:
    runs: list[int] = []

    async def body(ctx: DurableContext, input: Any) -> int:
        runs.append(1)
        if len(runs) == 1:
            raise asyncio.CancelledError
        return len(runs)

    world = await open_world(work(body))
    assert await world.result(await world.start("run")) == 2


async def test_results_that_cannot_be_sent_fail_the_operation(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: str) -> Any:
        return object() if input == "object" else "x" * PAYLOAD_BYTES

    world = await open_world(work(body))
    _, message = await world.failure(await world.start("run", "large"))
    assert "is over the limit of 2097152 bytes" in message
    _, message = await world.failure(await world.start("run", "object"))
    assert message == "the operation's result cannot be serialized"


async def test_the_context_tells_about_the_operation(open_world: OpenWorld) -> None:
    @service_handler(name="Work")
    class Work:
        @durable_operation
        async def run(self, ctx: DurableContext, input: None) -> list[Any]:
            return [
                ctx.operation_token, ctx.request_id, ctx.service, ctx.operation, ctx.caller,
                dict(ctx.headers), [link.url for link in ctx.links],
            ]  # fmt: skip

    world = await open_world(Work())
    request = world.request("run", headers={"x": "y"}, links=links("caller"), request_id="me")
    answer = await world.engine.start(replace(request, key=replace(request.key, caller="ann")))
    assert isinstance(answer, Started)
    assert await world.result(answer.token) == [
        answer.token, "me", "Work", "run", "ann", {"x": "y"}, ["https://caller.example/"],
    ]  # fmt: skip


async def test_an_input_that_no_longer_fits_pauses(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.sleep(HOUR)

    world = await open_world(work(body))
    token = await world.start("run", "text")
    await world.waits_at(token, "sleep#1")
    await world.kill()

    @service_handler(name="Work")
    class Work:
        @durable_operation
        async def run(self, ctx: DurableContext, input: int) -> int:
            return input

    world.services = [Work()]
    await world.open()
    assert "no longer fits the operation's input type" in await world.paused(token)


async def test_short_waits_and_timedelta_zero(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> str:
        await ctx.sleep(timedelta(seconds=-1))
        return "awake"

    world = await open_world(work(body))
    assert await world.result(await world.start("run")) == "awake"
