"""The services that the clauses call: an operation for each thing that a handler may do."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from nexusrpc import (
    HandlerError,
    HandlerErrorType,
    Link,
    OperationError,
    OperationErrorState,
)
from nexusrpc.handler import (
    CancelOperationContext,
    OperationHandler,
    StartOperationContext,
    StartOperationResultAsync,
    StartOperationResultSync,
    operation_handler,
    service_handler,
    sync_operation,
)
from pydantic import BaseModel

from handlers import DurableContext, durable_operation
from nexus_spec import application_error

# What is logged with its traceback on purpose has this text.
DELIBERATE = "deliberately unexpected"

HANDLERS_LINK = Link("myscheme://shop/orders/7?a=1,2;b=3", "com.example.Order")
MEBIBYTE = 1024 * 1024


class Item(BaseModel):
    """An input with a schema."""

    name: str
    count: int = 1


class Gates:
    """Points that operations wait at until a clause lets them go on."""

    def __init__(self) -> None:
        self._events: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def open(self, name: str) -> None:
        self._events[name].set()

    async def wait(self, name: str) -> None:
        await self._events[name].wait()


class Flags:
    """What happened inside a handler, for a clause to wait for; usable from threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._raised: dict[str, str] = {}

    def wave(self, name: str, text: str) -> None:
        with self._changed:
            self._raised[name] = text
            self._changed.notify_all()

    def wait(self, name: str, timeout_seconds: float = 10.0) -> str:
        with self._changed:
            self._changed.wait_for(lambda: name in self._raised, timeout_seconds)
            return self._raised.get(name, "never")


def raise_error(kind: str) -> None:
    """Raise the error of a name: `failed`, `canceled`, `unexpected`, or of a HandlerErrorType."""
    match kind.split(":"):
        case ["failed" | "canceled" as state]:
            error = OperationError("out of stock", state=OperationErrorState(state))
            raise error from OperationError("shelf empty", state=OperationErrorState.FAILED)
        case ["application"]:
            raise application_error("card declined", type="CardDeclined", non_retryable=True)
        case ["unexpected"]:
            raise RuntimeError(f"{DELIBERATE}: the password is swordfish")
        case [type, override]:
            raise HandlerError(
                "not today",
                type=HandlerErrorType[type],
                retryable_override=override == "retry",
            )
        case [type]:
            raise HandlerError("not today", type=HandlerErrorType[type])


@service_handler(name="inline")
class Inline:
    """Operations that answer at once."""

    def __init__(self, gates: Gates, flags: Flags) -> None:
        self._gates = gates
        self._flags = flags
        self._calls: defaultdict[str, int] = defaultdict(int)

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> Any:
        return value

    @sync_operation
    async def typed(self, ctx: StartOperationContext, item: Item) -> Item:
        return Item(name=item.name.upper(), count=item.count + 1)

    @sync_operation
    async def nothing(self, ctx: StartOperationContext, value: None) -> None:
        return None

    @sync_operation(name="bytes")
    async def reversed_bytes(self, ctx: StartOperationContext, value: bytes) -> bytes:
        return value[::-1]

    @sync_operation
    def threaded(self, ctx: StartOperationContext, value: Any) -> dict[str, Any]:
        return {"value": value, "thread": threading.current_thread().name}

    @sync_operation
    async def context(self, ctx: StartOperationContext, value: Any) -> dict[str, Any]:
        return {
            "service": ctx.service,
            "operation": ctx.operation,
            "headers": dict(ctx.headers),
            "request_id": ctx.request_id,
            "callback_url": ctx.callback_url,
            "callback_headers": dict(ctx.callback_headers),
            "links": [[link.url, link.type] for link in ctx.inbound_links],
            "has_deadline": ctx.request_deadline is not None,
        }

    @sync_operation
    async def linked(self, ctx: StartOperationContext, value: Any) -> str:
        ctx.outbound_links.extend([HANDLERS_LINK, Link("http://h.example/2", "T2")])
        return "linked"

    @sync_operation
    async def calls(self, ctx: StartOperationContext, name: str) -> int:
        self._calls[name] += 1
        return self._calls[name]

    @sync_operation
    async def error(self, ctx: StartOperationContext, kind: str) -> None:
        raise_error(kind)

    @sync_operation(name="threaded-error")
    def threaded_error(self, ctx: StartOperationContext, kind: str) -> None:
        raise_error(kind)

    @sync_operation
    async def sized(self, ctx: StartOperationContext, size: int) -> bytes:
        return b"x" * size

    @sync_operation
    async def slow(self, ctx: StartOperationContext, name: str) -> str:
        try:
            self._gates.open(f"{name} began")
            await self._gates.wait(name)
        except asyncio.CancelledError:
            self._flags.wave(name, str(ctx.task_cancellation.cancellation_reason()))
            raise
        return "late"

    @sync_operation(name="slow-thread")
    def slow_thread(self, ctx: StartOperationContext, name: str) -> str:
        self._flags.wave(f"{name} began", "yes")
        if ctx.task_cancellation.wait_until_cancelled_sync(10.0):
            self._flags.wave(name, str(ctx.task_cancellation.cancellation_reason()))
        return "late"

    @sync_operation(name="open-gate")
    async def open_gate(self, ctx: StartOperationContext, name: str) -> None:
        self._gates.open(name)

    @sync_operation(name="at-gate")
    async def at_gate(self, ctx: StartOperationContext, name: str) -> None:
        await self._gates.wait(name)

    @sync_operation
    def flag(self, ctx: StartOperationContext, name: str) -> str:
        return self._flags.wait(name)


@service_handler(name="durable")
class Durable:
    """Operations that the engine runs."""

    def __init__(self, gates: Gates, flags: Flags) -> None:
        self._gates = gates
        self._flags = flags
        self._runs: defaultdict[str, int] = defaultdict(int)

    @durable_operation
    async def echo(self, ctx: DurableContext, value: Any) -> Any:
        return value

    @durable_operation
    async def typed(self, ctx: DurableContext, item: Item) -> Item:
        return item

    @durable_operation(name="bytes")
    async def reversed_bytes(self, ctx: DurableContext, value: bytes) -> bytes:
        return value[::-1]

    @durable_operation
    async def nothing(self, ctx: DurableContext, value: Any) -> None:
        return None

    @durable_operation
    async def gated(self, ctx: DurableContext, name: str) -> str:
        await ctx.step(self._gates.wait, name)
        return f"through {name}"

    @durable_operation
    async def counted(self, ctx: DurableContext, name: str) -> int:
        self._runs[name] += 1
        return self._runs[name]

    @durable_operation
    async def forever(self, ctx: DurableContext, value: Any) -> None:
        await ctx.sleep(timedelta(days=30))

    @durable_operation
    async def stubborn(self, ctx: DurableContext, value: Any) -> str:
        try:
            await ctx.sleep(timedelta(days=30))
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    @durable_operation
    async def error(self, ctx: DurableContext, kind: str) -> None:
        raise_error(kind)

    @durable_operation
    async def linked(self, ctx: DurableContext, value: Any) -> list[list[str]]:
        ctx.add_link(HANDLERS_LINK)
        return [[link.url, link.type] for link in ctx.links]

    @durable_operation
    async def sized(self, ctx: DurableContext, size: int) -> bytes:
        return b"x" * size

    @durable_operation
    async def context(self, ctx: DurableContext, value: Any) -> dict[str, Any]:
        return {
            "service": ctx.service,
            "operation": ctx.operation,
            "headers": dict(ctx.headers),
            "request_id": ctx.request_id,
            "token": ctx.operation_token,
            "caller": ctx.caller,
            "links": [[link.url, link.type] for link in ctx.links],
            "has_deadline": ctx.deadline is not None,
        }

    @durable_operation(timeout=timedelta(milliseconds=100))
    async def brief(self, ctx: DurableContext, value: Any) -> None:
        await ctx.sleep(timedelta(days=30))


class Elsewhere(OperationHandler[Any, Any]):
    """Hands an operation to somebody else, under a token of its own."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags

    async def start(
        self, ctx: StartOperationContext, input: Any
    ) -> StartOperationResultSync[Any] | StartOperationResultAsync:
        match input:
            case {"token": str(token)}:
                ctx.outbound_links.append(HANDLERS_LINK)
                return StartOperationResultAsync(token)
            case {"error": str(kind)}:
                raise_error(kind)
        return StartOperationResultSync(input)

    async def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        if token.startswith("no-cancel"):
            raise NotImplementedError
        if token.startswith("refuses"):
            raise HandlerError("too late", type=HandlerErrorType.CONFLICT)
        self._flags.wave(token, f"asked to cancel {ctx.service}/{ctx.operation}")


class ThreadedElsewhere(OperationHandler[Any, Any]):
    """The same with plain methods."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags

    def start(
        self, ctx: StartOperationContext, input: dict[str, str]
    ) -> StartOperationResultSync[Any] | StartOperationResultAsync:
        return StartOperationResultAsync(input["token"])

    def cancel(self, ctx: CancelOperationContext, token: str) -> None:
        self._flags.wave(token, threading.current_thread().name)


@service_handler(name="custom")
class Custom:
    """Operations that run elsewhere."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags

    @operation_handler
    def elsewhere(self) -> OperationHandler[Any, Any]:
        return Elsewhere(self._flags)

    @operation_handler(name="threaded")
    def threaded(self) -> OperationHandler[Any, Any]:
        return ThreadedElsewhere(self._flags)


@service_handler(name="pay/ments v1")
class OddlyNamed:
    """Names with every character that a path gives a meaning."""

    @sync_operation(name="charge/cancel")
    async def with_slash(self, ctx: StartOperationContext, value: Any) -> str:
        return ctx.operation

    @sync_operation(name="a+b")
    async def with_plus(self, ctx: StartOperationContext, value: Any) -> str:
        return ctx.operation

    @sync_operation(name="grüße?x=1#2%41")
    async def with_everything(self, ctx: StartOperationContext, value: Any) -> str:
        return ctx.operation

    @durable_operation(name="cancel")
    async def named_like_an_action(self, ctx: DurableContext, value: Any) -> None:
        await ctx.sleep(timedelta(days=30))


@service_handler(name="inline")
class OtherInline:
    """A service of the same name behind another endpoint."""

    @sync_operation
    async def echo(self, ctx: StartOperationContext, value: Any) -> dict[str, Any]:
        return {"other": value}


def make_services() -> Sequence[Any]:
    """Return new instances, which share their gates and flags."""
    gates, flags = Gates(), Flags()
    return [Inline(gates, flags), Durable(gates, flags), Custom(flags), OddlyNamed()]


services = make_services()
other_services = [OtherInline()]
durable_twin = [Durable(Gates(), Flags())]
