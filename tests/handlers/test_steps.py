"""What a step records, and what its handler gets."""

import asyncio
import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from nexusrpc import HandlerError, HandlerErrorType, OperationError, OperationErrorState
from nexusrpc.handler import service_handler
from pydantic import BaseModel

from handlers import (
    DurableContext,
    RetryPolicy,
    StepArgumentsInvalid,
    StepError,
    durable_operation,
)
from tests.handlers.world import World, until

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=1))

OpenWorld = Callable[..., Awaitable[World]]
Body = Callable[[DurableContext, Any], Awaitable[Any]]


def work(body: Body) -> Any:
    """Return a service whose operation `run` does this."""

    @service_handler(name="Work")
    class Work:
        @durable_operation
        async def run(self, ctx: DurableContext, input: Any) -> Any:
            return await body(ctx, input)

    return Work()


class Model(BaseModel):
    name: str
    tags: set[str] = set()


@dataclass
class Data:
    number: int


async def model() -> Model:
    return Model(name="m", tags={"a", "b"})


async def data() -> Data:
    return Data(3)


async def untyped():  # type: ignore[no-untyped-def]
    return Data(4)


async def nothing() -> None:
    return None


async def octets() -> bytes:
    return b"\x00\xff"


async def some_octets() -> list[bytes]:
    return [b"text"]


def on_thread() -> tuple[int, str]:
    return 1, threading.current_thread().name.split("_")[0]


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (model, "Model(name='m', tags={'a', 'b'})"),
        (data, "Data(number=3)"),
        (untyped, "{'number': 4}"),
        (nothing, "None"),
        (octets, "b'\\x00\\xff'"),
        (some_octets, "[b'text']"),
        (on_thread, "(1, 'nexus-step')"),
    ],
)
async def test_a_step_gives_its_decoded_record_the_first_time_as_on_replay(
    open_world: OpenWorld, function: Callable[..., Any], seen: str
) -> None:
    ran: Counter[str] = Counter()
    results: list[str] = []
    gate = asyncio.Event()

    @functools.wraps(function)
    def counted(*args: Any) -> Any:
        ran["step"] += 1
        return function(*args)

    async def body(ctx: DurableContext, input: Any) -> None:
        result = await ctx.step(function, name="it")
        results.append(repr(result).replace("{'b', 'a'}", "{'a', 'b'}"))
        await ctx.step(gate.wait, name="gate")

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: len(results) == 1)
    await world.reopen()
    await until(lambda: len(results) == 2)
    gate.set()
    await world.result(token)
    assert results == [seen, seen]


async def test_a_recorded_step_never_runs_again(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    gate = asyncio.Event()

    async def charge(amount: int) -> int:
        ran["charge"] += 1
        return amount

    async def body(ctx: DurableContext, input: int) -> int:
        total = await ctx.step(charge, input)
        total += await ctx.step(charge, input)
        await ctx.step(gate.wait, name="gate")
        return total

    world = await open_world(work(body))
    token = await world.start("run", 4)
    await world.waits_at(token, "charge#2")
    for _ in range(3):
        await world.reopen()
    gate.set()
    assert await world.result(token) == 8
    assert ran["charge"] == 2


async def test_other_arguments_pause_the_operation_and_resume_continues_it(
    open_world: OpenWorld,
) -> None:
    price = 1
    gate = asyncio.Event()
    cleaned_up: list[str] = []

    async def charge(amount: int) -> int:
        return amount

    async def refund() -> None:
        cleaned_up.append("refund")

    async def body(ctx: DurableContext, input: Any) -> int:
        try:
            paid = await ctx.step(charge, price)
            await ctx.step(gate.wait, name="gate")
            return paid
        except BaseException:
            await ctx.step(refund)
            raise
        finally:
            await ctx.step(refund)

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "charge#1")
    price = 2
    await world.reopen()
    assert "'charge#1' was recorded with other arguments" in await world.paused(token)
    assert cleaned_up == []

    assert (await world.engine.resume(token)).state == "running"
    await world.paused(token)

    price = 1
    gate.set()
    await world.engine.resume(token)
    assert await world.result(token) == 1
    with pytest.raises(HandlerError, match="is succeeded, not paused"):
        await world.engine.resume(token)


async def test_a_divergence_in_a_branch_stops_the_others(open_world: OpenWorld) -> None:
    price = 1
    ran: Counter[str] = Counter()

    async def charge(amount: int) -> int:
        ran[f"charge{amount}"] += 1
        return amount

    async def more() -> None:
        ran["more"] += 1
        await asyncio.Event().wait()

    async def other(ctx: DurableContext) -> None:
        await ctx.sleep(timedelta(milliseconds=20))
        await ctx.step(more)

    async def one(ctx: DurableContext) -> None:
        await ctx.step(charge, price)
        await ctx.sleep(timedelta(hours=1))

    async def body(ctx: DurableContext, input: Any) -> None:
        await asyncio.gather(one(ctx), other(ctx), return_exceptions=True)
        await ctx.step(more, name="after")

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "1/sleep#1")
    await world.kill()
    ran.clear()
    price = 2
    await world.open()
    await world.paused(token)
    await asyncio.sleep(0.03)
    assert not ran


async def test_another_kind_of_call_pauses_the_operation(open_world: OpenWorld) -> None:
    steps = True

    async def body(ctx: DurableContext, input: Any) -> None:
        if steps:
            await ctx.step(nothing, name="sleep")
        else:
            await ctx.sleep(timedelta(0))
        await ctx.sleep(timedelta(hours=1))

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#2")
    steps = False
    await world.reopen()
    reason = await world.paused(token)
    assert reason == (
        "the journal has step 'sleep#1' at this place, the code now asks for timer 'sleep#1'"
    )


async def test_a_result_that_does_not_fit_its_type_pauses(open_world: OpenWorld) -> None:
    async def wrong() -> int:
        return "no number"  # type: ignore[return-value]

    async def body(ctx: DurableContext, input: Any) -> int:
        return await ctx.step(wrong)

    world = await open_world(work(body))
    token = await world.start("run")
    assert "recorded result of 'wrong#1' does not fit" in await world.paused(token)


async def test_a_failing_step_is_tried_again_and_then_a_step_error(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()
    seen: list[Any] = []
    gate = asyncio.Event()

    async def breaks() -> None:
        ran["breaks"] += 1
        raise KeyError("k")

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.step(breaks, retry=AT_ONCE)
        except StepError as error:
            seen.append((str(error), error.type_name, error.message, error.step, error.attempts))
        await ctx.step(gate.wait, name="gate")
        await ctx.step(breaks, retry=AT_ONCE)
        return "not reached"

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "breaks#1")
    await world.reopen()
    gate.set()
    assert await world.failure(token) == ("failed", "step 'breaks#2' failed 3 times")
    assert seen == [("KeyError: 'k'", "KeyError", "'k'", "breaks#1", 3)] * 2
    assert ran["breaks"] == 6


async def test_what_is_not_retryable_is_tried_once(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()

    def raises(error: Exception) -> Callable[[], Any]:
        async def function() -> None:
            ran[type(error).__name__] += 1
            raise error

        return function

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        policy = RetryPolicy(
            initial_interval=timedelta(milliseconds=1),
            max_attempts=2,
            non_retryable=(KeyError,),
        )
        errors = []
        for error in (
            KeyError("k"),
            ValueError("v"),
            HandlerError("h", type=HandlerErrorType.NOT_FOUND),
            OperationError("o", state=OperationErrorState.CANCELED),
        ):
            try:
                await ctx.step(raises(error), name="raises", retry=policy)
            except (StepError, OperationError) as failure:
                errors.append(f"{type(failure).__name__} {failure}")
        return errors

    world = await open_world(work(body))
    assert await world.result(await world.start("run")) == [
        "StepError KeyError: 'k'",
        "StepError ValueError: v",
        "StepError HandlerError: h",
        "OperationError o",
    ]
    assert ran == {"KeyError": 1, "ValueError": 2, "HandlerError": 1, "OperationError": 1}


async def test_an_operation_error_in_a_step_ends_the_operation_so(open_world: OpenWorld) -> None:
    async def gives_up() -> None:
        raise OperationError("out of stock", state=OperationErrorState.CANCELED)

    async def body(ctx: DurableContext, input: Any) -> None:
        await ctx.step(gives_up)

    world = await open_world(work(body))
    assert await world.failure(await world.start("run")) == ("canceled", "out of stock")


async def test_a_step_may_time_out_and_be_tried_again(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()

    async def slow_at_first() -> int:
        ran["step"] += 1
        if ran["step"] == 1:
            await asyncio.Event().wait()
        return ran["step"]

    async def body(ctx: DurableContext, input: Any) -> int:
        return await ctx.step(slow_at_first, retry=AT_ONCE, timeout=timedelta(milliseconds=10))

    world = await open_world(work(body))
    assert await world.result(await world.start("run")) == 2


class Invocable:
    async def __call__(self) -> int:
        return 7

    async def method(self) -> int:
        return 8


async def test_any_callable_is_a_step(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> list[int]:
        async def plus(a: int, b: int) -> int:
            return a + b

        instance = Invocable()
        return [
            await ctx.step(instance, name="call"),
            await ctx.step(instance.method),
            await ctx.step(functools.partial(plus, 1), 8, name="partial"),
            await ctx.step(lambda: 10, name="lambda"),
            await ctx.step(int, "11"),
        ]

    world = await open_world(work(body))
    token = await world.start("run")
    assert await world.result(token) == [7, 8, 9, 10, 11]


async def test_what_cannot_be_recorded_is_refused_without_trying_again(
    open_world: OpenWorld,
) -> None:
    ran: Counter[str] = Counter()

    async def gives_an_object() -> object:
        ran["object"] += 1
        return object()

    def gives_too_much() -> str:
        ran["much"] += 1
        return "x" * (2 * 1024 * 1024 + 1)

    def gives_a_coroutine() -> Any:
        return nothing()

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        messages = []
        for function in (gives_an_object, gives_too_much, gives_a_coroutine):
            try:
                await ctx.step(function, retry=AT_ONCE)
            except StepError as error:
                messages.append(error.message)
        for call in (
            lambda: ctx.step(nothing, object()),
            lambda: ctx.step(nothing, (n for n in [1])),
            lambda: ctx.step(functools.partial(nothing)),
            lambda: ctx.step(nothing, name="a#1"),
            lambda: ctx.step(on_thread, timeout=timedelta(seconds=1)),
        ):
            try:
                await call()
            except StepArgumentsInvalid as error:
                messages.append(str(error))
        return messages

    world = await open_world(work(body))
    messages = await world.result(await world.start("run"))
    for message, part in zip(
        messages,
        [
            "a step's result cannot be recorded: Unable to serialize unknown type",
            "is over the limit of 2097152",
            "make it `async def`",
            "must be JSON-serializable values",
            "an iterator can be read only once",
            "needs a name without",
            "needs a name without",
            "a timeout needs an `async def` function",
        ],
        strict=True,
    ):
        assert part in message
    assert ran == {"object": 1, "much": 1}


async def test_a_plain_function_that_raises_stop_iteration_fails_its_step(
    open_world: OpenWorld,
) -> None:
    def exhausted() -> int:
        return next(iter(()))

    async def body(ctx: DurableContext, input: Any) -> str:
        try:
            await ctx.step(exhausted, retry=AT_ONCE)
        except StepError as error:
            return error.type_name
        return ""

    world = await open_world(work(body))
    assert await world.result(await world.start("run")) == "RuntimeError"


async def test_branches_keep_their_keys_and_results_on_replay(open_world: OpenWorld) -> None:
    gates = {name: asyncio.Event() for name in "abc"}
    hold = asyncio.Event()
    ran: Counter[str] = Counter()

    async def work_on(name: str) -> str:
        ran[name] += 1
        await gates[name].wait()
        return f"done {name}"

    async def branch(ctx: DurableContext, name: str) -> str:
        first = await ctx.step(work_on, name)
        return f"{first} {await ctx.step(work_on, name)}"

    async def body(ctx: DurableContext, input: Any) -> list[str]:
        results = await asyncio.gather(*(branch(ctx, name) for name in "abc"))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(ctx, name)) for name in "cb"]
        await ctx.step(hold.wait, name="hold")
        return [*results, *(task.result() for task in tasks)]

    world = await open_world(work(body))
    token = await world.start("run")
    for name in "cab":
        gates[name].set()
        await until(functools.partial(lambda done: ran[done] >= 2, name))
    await world.waits_at(token, "5/work_on#2")
    await world.reopen()
    hold.set()
    assert await world.result(token) == [f"done {n} done {n}" for n in "abccb"]
    assert ran == {"a": 2, "b": 4, "c": 4}
    keys = [entry.key for entry in await world.journal(token)]
    assert sorted(keys) == sorted(
        [f"{n}/work_on#{m}" for n in range(1, 6) for m in (1, 2)] + ["hold#1"]
    )


async def test_a_branch_left_behind_stops_with_its_handler(open_world: OpenWorld) -> None:
    stopped: list[str] = []
    started = asyncio.Event()

    async def long() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("step")

    async def fails() -> None:
        await started.wait()
        raise OperationError("no", state=OperationErrorState.FAILED)

    async def body(ctx: DurableContext, input: Any) -> None:
        await asyncio.gather(ctx.step(long), ctx.step(fails), ctx.sleep(timedelta(hours=1)))

    world = await open_world(work(body))
    assert await world.failure(await world.start("run")) == ("failed", "no")
    await until(lambda: stopped == ["step"])


async def test_sleep_survives_a_restart(open_world: OpenWorld) -> None:
    times: list[float] = []

    async def body(ctx: DurableContext, input: Any) -> float:
        began = ctx.now()
        await ctx.sleep(timedelta(milliseconds=300))
        times.append(ctx.now().timestamp())
        return (ctx.now() - began).total_seconds()

    world = await open_world(work(body))
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    wake_at = (await world.journal(token))[0].wake_at
    await world.reopen()
    assert 0.3 <= await world.result(token) < 5
    assert [entry.wake_at for entry in await world.journal(token)] == [wake_at]
    assert times == [(wake_at or 0) / 1000]


async def test_now_uuid_random_and_keys_are_the_same_on_every_run(open_world: OpenWorld) -> None:
    seen: list[list[str]] = []
    gate = asyncio.Event()

    async def branch(ctx: DurableContext) -> list[str]:
        return [str(ctx.now()), str(ctx.uuid()), str(ctx.random()), ctx.idempotency_key]

    async def body(ctx: DurableContext, input: Any) -> None:
        values = [*await branch(ctx), *await branch(ctx)]
        await ctx.step(nothing)
        values += await branch(ctx)
        for more in await asyncio.gather(branch(ctx), branch(ctx)):
            values += more
        seen.append(values)
        await ctx.step(gate.wait, name="gate")

    world = await open_world(work(body))
    token = await world.start("run")
    await until(lambda: len(seen) == 1)
    await world.reopen()
    await until(lambda: len(seen) == 2)
    gate.set()
    await world.ended(token)
    assert seen[0] == seen[1]
    uuids = seen[0][1::4]
    assert len(set(uuids)) == len(uuids) == 5
    keys = seen[0][3::4]
    assert len(set(keys)) == len(keys)


async def test_a_database_that_refuses_loses_no_step(open_world: OpenWorld) -> None:
    ran: Counter[str] = Counter()

    async def charge() -> int:
        ran["charge"] += 1
        return 5

    async def body(ctx: DurableContext, input: Any) -> int:
        return await ctx.step(charge)

    world = await open_world(work(body))
    refusals = [OSError("disk full")]

    def refuse(write: Any) -> Exception | None:
        return refusals.pop() if type(write).__name__ == "AppendJournal" and refusals else None

    world.database.refuses = refuse
    token = await world.start("run")
    assert await world.result(token) == 5
    assert ran["charge"] == 1


async def test_a_context_works_only_in_its_handler(open_world: OpenWorld) -> None:
    kept: list[DurableContext] = []

    async def body(ctx: DurableContext, input: Any) -> str:
        kept.append(ctx)
        return repr(ctx)

    world = await open_world(work(body))
    token = await world.start("run")
    assert await world.result(token) == f"<DurableContext of operation {token}>"
    with pytest.raises(BaseException, match=r"^$") as raised:
        await kept[0].sleep(timedelta(0))
    assert type(raised.value).__name__ == "LeftMemory"
    with contextlib.suppress(BaseException):
        kept[0].now()


async def test_a_mistake_in_the_handler_is_told_and_not_tried_again(open_world: OpenWorld) -> None:
    messages: list[str] = []

    async def body(ctx: DurableContext, input: Any) -> None:
        for call in (
            lambda: ctx.step(nothing()),  # type: ignore[call-overload]
            lambda: ctx.step(1),  # type: ignore[call-overload]
            lambda: ctx.sleep(1),  # type: ignore[arg-type]
        ):
            try:
                await call()
            except StepArgumentsInvalid as error:
                messages.append(str(error))
        try:
            await ctx.step(nothing, 1, 2)
        except StepError as error:
            messages.append(f"{error.attempts}: {error.message}")
        await ctx.step(1)  # type: ignore[call-overload]

    world = await open_world(work(body))
    stored = await world.ended(await world.start("run"))
    assert (stored.state.value, stored.attempts) == ("failed", 0)
    assert "a function and its arguments" in (stored.error_detail or "")
    for message, part in zip(
        messages,
        ["not a call of it", "a function and its arguments", "a timedelta", "1: nothing() takes"],
        strict=True,
    ):
        assert part in message


async def test_the_last_progress_is_kept_with_the_end(open_world: OpenWorld) -> None:
    async def body(ctx: DurableContext, input: Any) -> None:
        for tenth in range(11):
            ctx.progress(tenth / 10, f"part {tenth}")

    world = await open_world(work(body))
    stored = await world.ended(await world.start("run"))
    assert stored.progress == '{"fraction": 1.0, "message": "part 10"}'
