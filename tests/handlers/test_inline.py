"""Request cancellation and handler threads, by themselves."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nexusrpc import HandlerError
from nexusrpc.handler import (
    CancelOperationContext,
    MiddlewareSafeOperationHandler,
    OperationContext,
    OperationHandler,
    OperationHandlerMiddleware,
    StartOperationContext,
    service_handler,
    sync_operation,
)

from handlers.engine import Engine
from handlers.inline import HandlerThreads, TaskCancellation, run_within_request
from handlers.services import InvalidService, ServiceRegistry
from nexus_spec import PayloadSerializer
from tests.handlers.world import World, until, value_of

pytestmark = pytest.mark.anyio

OpenWorld = Callable[..., Awaitable[World]]


async def test_everybody_who_waits_is_told_once() -> None:
    cancellation = TaskCancellation()
    assert not cancellation.is_cancelled()
    assert not cancellation.wait_until_cancelled_sync(0)
    waiting = [asyncio.ensure_future(cancellation.wait_until_cancelled()) for _ in range(3)]
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(cancellation.wait_until_cancelled_sync(9)))
    thread.start()
    await asyncio.sleep(0)
    waiting[0].cancel()
    cancellation.cancel("first")
    cancellation.cancel("second")
    await asyncio.gather(*waiting[1:])
    thread.join(9)
    assert told == [True]
    assert cancellation.cancellation_reason() == "first"
    await cancellation.wait_until_cancelled()
    late = TaskCancellation()
    late.cancel("before anybody asked")
    assert late.wait_until_cancelled_sync(0)


async def test_a_cancel_from_outside_is_no_timeout() -> None:
    cancellation = TaskCancellation()

    async def handler() -> None:
        await asyncio.Event().wait()

    running = asyncio.ensure_future(run_within_request(handler(), cancellation, 60, None))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancellation.cancellation_reason() == "the server is shutting down"


async def test_threads_are_bounded_and_carry_context() -> None:
    threads = HandlerThreads(1)
    gate = threading.Event()
    busy = threads.run(gate.wait, 10)
    with pytest.raises(HandlerError, match="all 1 handler threads are busy"):
        await threads.run(int)
    busy.cancel()
    with pytest.raises(HandlerError):
        await threads.run(int)  # the thread is not free for that
    gate.set()
    await until(lambda: threads._taken == 0)
    assert await threads.run(int, "3") == 3
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))
    threads.close()


async def test_middleware_wraps_every_handler(open_world: OpenWorld) -> None:
    seen: list[str] = []

    class Inner(MiddlewareSafeOperationHandler):
        def __init__(self, name: str, wrapped: MiddlewareSafeOperationHandler) -> None:
            self.name, self.wrapped = name, wrapped

        async def start(self, ctx: StartOperationContext, input: Any) -> Any:
            seen.append(self.name)
            return await self.wrapped.start(ctx, input)

        async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
            await self.wrapped.cancel(ctx, token)

    class Named(OperationHandlerMiddleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def intercept(
            self,
            ctx: OperationContext,
            next: MiddlewareSafeOperationHandler,
        ) -> MiddlewareSafeOperationHandler:
            return Inner(self.name, next)

    @service_handler(name="Work")
    class Work:
        @sync_operation
        async def echo(self, ctx: StartOperationContext, input: str) -> str:
            return input

    world = await open_world()
    engine = Engine(
        ServiceRegistry({"default": [Work()]}),
        world.database,
        world.delivery,
        lease=world.lease,
        middleware=[Named("outer"), Named("inner")],
    )
    assert value_of(await engine.start(world.request("echo", "x"))) == "x"
    assert seen == ["outer", "inner"]
    await engine.close(0)


def test_types_that_cannot_be_read_are_found_before_the_first_request() -> None:
    class Opaque:
        pass

    @service_handler(name="Work")
    class Work:
        @sync_operation
        async def odd(self, ctx: StartOperationContext, input: Opaque) -> None:
            return None

    registry = ServiceRegistry({"default": [Work()]})
    with pytest.raises(InvalidService, match="Work/odd cannot be served"):
        registry.check_types(PayloadSerializer())


def test_operation_handlers_are_what_nexusrpc_says() -> None:
    assert issubclass(MiddlewareSafeOperationHandler, OperationHandler)
