"""The services of these tests as the gateway process serves them."""

import asyncio
from collections import Counter
from pathlib import Path

from nexusrpc import (
    HandlerError,
    HandlerErrorType,
    Link,
    OperationError,
    OperationErrorState,
)
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation

from handlers import DurableContext, durable_operation
from nexus_spec import application_error
from tests.interop.contract import Greeting, Interop, LinkSeen, Person, Work

ORDER_LINK = Link("https://shop.example/orders/7?a=1,2;b=3", "shop.example.Order")
WORKFLOW_LINK = Link(
    "temporal:///namespaces/default/workflows/behind-the-gateway/run-1/history"
    "?eventID=1&eventType=WorkflowExecutionStarted&referenceType=EventReference",
    "temporal.api.common.v1.Link.WorkflowEvent",
)

_LOOK_AGAIN_SECONDS = 0.02


@service_handler(service=Interop)
class InteropHandler:
    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    @sync_operation
    async def greet(self, _ctx: StartOperationContext, person: Person) -> Greeting:
        return Greeting(text=f"hello {person.name}")

    @durable_operation
    async def greet_later(self, ctx: DurableContext, person: Person) -> Greeting:
        return Greeting(text=await ctx.step(greeting_for, person.name))

    @durable_operation
    async def work(self, ctx: DurableContext, work: Work) -> list[str]:
        """Do something, wait for a file, do something more; undo it when told to end."""
        done = [await ctx.step(note, work.journal, "begun")]
        try:
            await ctx.step(exists, work.waits_for)
        except asyncio.CancelledError:
            await ctx.step(note, work.journal, "undone")
            raise
        return [*done, await ctx.step(note, work.journal, "done")]

    @durable_operation
    async def fail(self, _ctx: DurableContext, reason: str) -> str:
        raise _out_of_stock(reason)

    @sync_operation
    async def fail_at_once(self, _ctx: StartOperationContext, reason: str) -> str:
        raise _out_of_stock(reason)

    @durable_operation
    async def fail_as_application(self, _ctx: DurableContext, reason: str) -> str:
        raise application_error(reason, type="OutOfStock", non_retryable=True)

    @sync_operation
    async def reject(self, _ctx: StartOperationContext, reason: str) -> str:
        raise HandlerError(reason, type=HandlerErrorType.BAD_REQUEST)

    @sync_operation
    async def flaky(self, _ctx: StartOperationContext, name: str) -> int:
        """Break on the first two calls under a name."""
        self._calls[name] += 1
        if self._calls[name] < 3:
            raise RuntimeError("secret: the password is swordfish")
        return self._calls[name]

    @sync_operation
    async def broken(self, _ctx: StartOperationContext, _name: str) -> str:
        raise RuntimeError("secret: the password is swordfish")

    @durable_operation
    async def links(self, ctx: DurableContext, _name: str) -> list[LinkSeen]:
        ctx.add_link(ORDER_LINK)
        ctx.add_link(WORKFLOW_LINK)
        return [LinkSeen(url=link.url, type=link.type) for link in ctx.links]

    @sync_operation
    async def links_at_once(self, ctx: StartOperationContext, _name: str) -> list[LinkSeen]:
        ctx.outbound_links.extend([ORDER_LINK, WORKFLOW_LINK])
        return [LinkSeen(url=link.url, type=link.type) for link in ctx.inbound_links]

    @sync_operation
    async def nothing(self, _ctx: StartOperationContext, _input: None) -> None:
        return None

    @durable_operation
    async def nothing_later(self, _ctx: DurableContext, _input: None) -> None:
        return None


async def greeting_for(name: str) -> str:
    return f"hello {name}, later"


def note(journal: str, what: str) -> str:
    with Path(journal).open("a") as lines:
        lines.write(f"{what}\n")
    return what


async def exists(path: str) -> bool:
    while not is_there(path):  # noqa: ASYNC110  # it is the test that makes the file
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    return True


def is_there(path: str) -> bool:
    return Path(path).exists()


def _out_of_stock(reason: str) -> OperationError:
    error = OperationError(reason, state=OperationErrorState.FAILED)
    error.__cause__ = HandlerError("the shelf is empty", type=HandlerErrorType.NOT_FOUND)
    return error


services = [InteropHandler()]
