"""`ctx.call` and `ctx.start_call`: one operation at the other side, and one outcome of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx
import nexusrpc
import pytest
from nexusrpc import OperationError
from nexusrpc.handler import service_handler
from pydantic import BaseModel

from handlers import DurableContext, durable_operation
from handlers.engine_settings import EngineSettings
from handlers.errors import CallError
from handlers.store.signals import LOAD_SIGNALS
from tests.handlers.conftest import OpenWorld
from tests.handlers.fake_remote import LOST, FakeRemote, RemoteOperation, failed, failure, succeeded
from tests.handlers.replicas import Replica
from tests.handlers.world import World, links, until

pytestmark = pytest.mark.anyio

IN_MEMORY = EngineSettings(suspend_after_seconds=3600.0)
SUSPENDING = EngineSettings(suspend_after_seconds=0.0)
MODES = pytest.mark.parametrize(
    "settings", [IN_MEMORY, SUSPENDING], ids=["in memory", "suspending"]
)


class Parcel(BaseModel):
    to: str


class Booking(BaseModel):
    id: int


@nexusrpc.service(name="shipping/v1")
class Shipping:
    book: nexusrpc.Operation[Parcel, Booking]
    quote: nexusrpc.Operation[int, int]


Handle = Callable[[DurableContext, Any], Awaitable[Any]]


@service_handler(name="Work")
class Work:
    """Runs whatever a test wants a handler to do."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    @durable_operation
    async def run(self, ctx: DurableContext, input: Any) -> Any:
        return await self.handle(ctx, input)

    @durable_operation(timeout=timedelta(seconds=0.3))
    async def hurry(self, ctx: DurableContext, input: Any) -> Any:
        return await self.handle(ctx, input)


@pytest.fixture
def remote() -> FakeRemote:
    return FakeRemote()


@pytest.fixture
def open_work(open_world: OpenWorld, remote: FakeRemote) -> OpenWorld:
    async def open_work(handle: Handle, **options: Any) -> World:
        return await open_world(Work(handle), outgoing=remote.outgoing, **options)

    return open_work


async def book(ctx: DurableContext, to: str) -> int:
    booking = await ctx.call(Shipping.book, Parcel(to=to), endpoint="shipping")
    return booking.id


async def out_of_memory(world: World) -> None:
    await until(lambda: not world.engine.live)


@MODES
async def test_the_result_comes_by_the_completion(
    settings: EngineSettings, open_work: OpenWorld, remote: FakeRemote
) -> None:
    world = await open_work(book, settings=settings)
    token = await world.start("run", "Bern", links=links("order"), headers={"x": "not sent"})
    [operation] = await remote.started()
    assert operation.input == {"to": "Bern"}
    assert operation.headers["nexus-link"] == '<https://order.example/>; type="example.Link"'
    assert "x" not in operation.headers
    if settings is SUSPENDING:
        await out_of_memory(world)
    link = "https://ship.example/7"
    assert await remote.complete(world.database, operation, {"id": 7}, link=link)
    assert await world.result(token) == 7
    stored = await world.stored(token)
    assert link in stored.handler_links
    assert remote.requests == ["start"]
    assert [entry.key for entry in await world.journal(token)] == [
        "book#1.begin",
        "book#1.start",
        "book#1",
    ]


async def test_an_inline_result_is_the_result(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: int) -> list[int]:
        by_names = await ctx.call(("shipping/v1", "quote"), value, endpoint="shipping")
        return [by_names, await ctx.call(Shipping.quote, value + 1, endpoint="shipping")]

    remote.on_start = lambda operation: succeeded(operation.input * 10)
    world = await open_work(handle)
    assert await world.result(await world.start("run", 4)) == [40, 50]


@pytest.mark.parametrize("state", ["failed", "canceled"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_the_end_of_the_other_is_the_end_of_this_unless_caught(
    state: str, at_once: bool, open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, catch: bool) -> str:
        try:
            return str(await book(ctx, "Bern"))
        except OperationError as error:
            if not catch:
                raise
            return f"{error.state.value}: {error.message}"

    if at_once:
        remote.on_start = lambda operation: failed(state, "no ship")
    world = await open_work(handle)
    caught, uncaught = [await world.start("run", catch) for catch in (True, False)]
    for operation in await remote.started(2):
        if not at_once:
            await remote.complete(world.database, operation, "no ship", state=state)
    assert await world.result(caught) == f"{state}: no ship"
    assert await world.failure(uncaught) == (state, "no ship")


async def test_a_refusal_is_raised_and_recorded(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, catch: bool) -> str:
        try:
            return str(await book(ctx, "Bern"))
        except CallError as error:
            if not catch:
                raise
            return f"{error.type_name} {error.message} {error.step}"

    remote.script["start"] = [failure(409, "CONFLICT", "another input")] * 2
    world = await open_work(handle)
    assert await world.result(await world.start("run", True)) == "CONFLICT another input book#1"
    state, message = await world.failure(await world.start("run", False))
    assert (state, message) == ("failed", "step 'book#1' failed once")
    assert remote.requests == ["start", "start"]


@MODES
async def test_a_start_is_repeated_under_its_request_id(
    settings: EngineSettings, open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.script["start"] = [
        httpx.ConnectError("nobody there"),
        failure(503, "UNAVAILABLE", "later"),
        LOST,
    ]
    world = await open_work(book, settings=settings)
    token = await world.start("run", "Bern")
    await remote.asked("start", 4)
    [operation] = await remote.started()
    await remote.complete(world.database, operation, {"id": 7})
    assert await world.result(token) == 7
    assert len(remote.operations) == 1


async def test_a_completion_may_overtake_the_answer_of_its_start(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    world = await open_work(book)
    remote.script["start"] = [LOST, *[failure(503, "UNAVAILABLE", "later")] * 100]
    token = await world.start("run", "Bern")
    [operation] = await remote.started()
    await remote.complete(world.database, operation, {"id": 7})
    assert await world.result(token) == 7
    assert [entry.key for entry in await world.journal(token)] == ["book#1.begin", "book#1"]


async def test_the_first_completion_counts(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[int]:
        return [await book(ctx, "Bern"), await book(ctx, "Chur")]

    world = await open_work(handle)
    token = await world.start("run")
    [first] = await remote.started()
    for number in (1, 2, 3):
        assert await remote.complete(world.database, first, {"id": number})
    _, second = await remote.started(2)
    await remote.complete(world.database, second, {"id": 4})
    assert await world.result(token) == [1, 4]
    assert await remote.complete(world.database, second, {"id": 5})


@MODES
@pytest.mark.parametrize("last_is_written", [False, True])
@pytest.mark.parametrize("entries", range(6))
async def test_a_crash_at_any_record_changes_nothing(
    entries: int,
    last_is_written: bool,
    settings: EngineSettings,
    open_work: OpenWorld,
    remote: FakeRemote,
) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[int]:
        return [await book(ctx, "Bern"), await book(ctx, "Chur")]

    def end(operation: RemoteOperation) -> None:
        completing.append(asyncio.ensure_future(finish(operation)))

    async def finish(operation: RemoteOperation) -> None:
        # To whichever process is there by then, as a sender that retries does.
        while True:
            try:
                async with asyncio.timeout(0.05):
                    await remote.complete(world.database, operation, {"id": len(completing)})
                return
            except TimeoutError:
                pass

    completing: list[asyncio.Future[None]] = []
    remote.on_start = end
    world = await open_work(handle, settings=settings)
    await world.kill()
    await world.open(entries, last_is_written=last_is_written)
    token = await world.start("run")
    await world.database.dead.wait()
    await world.reopen()
    assert await world.result(token) == [1, 2]
    assert len(remote.operations) == 2
    await asyncio.gather(*completing)


async def test_a_completion_that_was_used_is_not_read_again(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> None:
        handle = await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        await book(ctx, "Chur")
        await handle.result()
        await ctx.wait_for("go")

    world = await open_work(handle)
    token = await world.start("run")
    for operation in await remote.started(2):
        await remote.complete(world.database, operation, {"id": 7})
    await world.waits_at(token, "book.result#1")
    assert await world.database.fetch(LOAD_SIGNALS, {"token": token}) == []
    await world.reopen()
    await world.engine.signal(token, "go", b"null")
    await world.result(token)


async def test_branches_keep_their_results(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[int]:
        return await ctx.gather(book(ctx, "Bern"), book(ctx, "Chur"), book(ctx, "Davos"))

    world = await open_work(handle, settings=SUSPENDING)
    token = await world.start("run")
    operations = await remote.started(3)
    await out_of_memory(world)
    numbers = {"Bern": 1, "Chur": 2, "Davos": 3}
    for operation in reversed(operations):
        await remote.complete(world.database, operation, {"id": numbers[operation.input["to"]]})
    assert await world.result(token) == [1, 2, 3]
    assert len(remote.operations) == 3


# ------------------------------------------------------------ without callbacks


@MODES
async def test_the_result_is_asked_for_where_nobody_calls_back(
    settings: EngineSettings, open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.callbacks = False
    world = await open_work(book, settings=settings)
    token = await world.start("run", "Bern")
    [operation] = await remote.started()
    assert operation.callback_token is None
    await remote.asked("result")
    operation.end(succeeded({"id": 7}))
    if settings is SUSPENDING:
        return  # it asks again in 5 s
    assert await world.result(token) == 7
    assert remote.requests == ["start", "result"]


async def test_an_operation_that_waits_for_a_question_leaves_memory_and_asks_again(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.callbacks = False
    world = await open_work(book, settings=SUSPENDING)
    token = await world.start("run", "Bern")
    [operation] = await remote.started()
    await remote.asked("result")
    await out_of_memory(world)
    stored = await world.stored(token)
    assert stored.run_at is not None
    assert 3000 < stored.run_at - stored.created_at < 8000
    operation.end(succeeded({"id": 7}))
    await world.reopen()
    assert await world.result(token) == 7


async def test_one_that_is_forgotten_at_the_other_side_is_refused(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.callbacks = False
    remote.script["result"] = [failure(404, "NOT_FOUND", "no such operation")]
    world = await open_work(book)
    state, _ = await world.failure(await world.start("run", "Bern"))
    assert state == "failed"


async def test_a_side_that_neither_calls_back_nor_can_be_asked_pauses(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.callbacks = False
    remote.script["result"] = [httpx.Response(501)]
    world = await open_work(book)
    reason = await world.paused(await world.start("run", "Bern"))
    assert "public_url" in reason
    assert "endpoints.shipping.callbacks" in reason


# ------------------------------------------------------------ mistakes


async def test_an_unknown_endpoint_pauses_and_can_be_resumed(
    open_world: OpenWorld, remote: FakeRemote
) -> None:
    world = await open_world(Work(book))
    token = await world.start("run", "Bern")
    reason = await world.paused(token)
    assert "endpoints.shipping.url" in reason
    world.outgoing = remote.outgoing
    await world.reopen()
    remote.on_start = lambda operation: succeeded({"id": 7})
    await world.engine.resume(token)
    assert await world.result(token) == 7


async def test_a_result_of_another_type_pauses(open_work: OpenWorld, remote: FakeRemote) -> None:
    remote.on_start = lambda operation: succeeded({"number": "x"})
    world = await open_work(book)
    reason = await world.paused(await world.start("run", "Bern"))
    assert "the result of 'book#1' is not what its definition says" in reason


async def test_changed_arguments_pause(open_work: OpenWorld, remote: FakeRemote) -> None:
    changing = iter(["Bern", "Chur"])

    async def handle(ctx: DurableContext, value: None) -> int:
        return await book(ctx, next(changing))

    world = await open_work(handle)
    token = await world.start("run")
    await world.waits_at(token, "book#1.start")
    await world.reopen()
    assert "'book#1' was recorded with other arguments" in await world.paused(token)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": ""},
        {"endpoint": "shipping", "timeout": 5},
        {"endpoint": "shipping", "timeout": timedelta(0)},
        {"endpoint": "shipping", "headers": {"content-type": "x"}},
        {"endpoint": "shipping", "service": 7},
    ],
)
async def test_a_call_that_cannot_be_made_fails_at_once(
    options: dict[str, Any], open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> Any:
        return await ctx.call(Shipping.book, Parcel(to="Bern"), **options)

    world = await open_work(handle)
    token = await world.start("run")
    assert (await world.failure(token))[0] == "failed"
    assert "StepArgumentsInvalid" in ((await world.stored(token)).error_detail or "")
    assert remote.requests == []


# ------------------------------------------------------------ cancel, deadline, timeout


@MODES
async def test_a_cancel_goes_along(
    settings: EngineSettings, open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> None:
        try:
            await book(ctx, "Bern")
        except asyncio.CancelledError:
            await ctx.step(note)
            raise

    async def note() -> None:
        noted.append(remote.requests.count("cancel"))

    noted: list[int] = []
    remote.script["cancel"] = [failure(503, "UNAVAILABLE", "later")]
    world = await open_work(handle, settings=settings)
    token = await world.start("run")
    await world.waits_at(token, "book#1.start")
    if settings is SUSPENDING:
        await out_of_memory(world)
    await world.cancel(token)
    assert (await world.failure(token))[0] == "canceled"
    [operation] = remote.operations.values()
    assert operation.cancels == 1
    assert noted == [2]  # before the handler's own cleanup


async def test_a_deadline_goes_along(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> int:
        return await book(ctx, "Bern")

    world = await open_work(handle)
    token = await world.start("hurry")
    [operation] = await remote.started()
    assert 0 < float(operation.headers["operation-timeout"].removesuffix("ms")) <= 300
    assert await world.failure(token) == ("failed", "operation timed out")
    assert operation.cancels == 1


async def test_a_start_of_unknown_outcome_is_canceled_all_the_same(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.script["start"] = [LOST, httpx.ConnectError("gone"), httpx.ConnectError("gone")]
    world = await open_work(book)
    token = await world.start("run", "Bern")
    [operation] = await remote.started()
    await world.cancel(token)
    assert (await world.failure(token))[0] == "canceled"
    assert operation.cancels == 1


async def test_a_cancel_that_is_refused_does_not_stop_the_handler(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    remote.script["cancel"] = [failure(501, "NOT_IMPLEMENTED", "cannot be canceled")]
    world = await open_work(book)
    token = await world.start("run", "Bern")
    await world.waits_at(token, "book#1.start")
    await world.cancel(token)
    assert (await world.failure(token))[0] == "canceled"
    assert remote.requests == ["start", "cancel"]


@pytest.mark.parametrize("entries", range(2, 6))
@pytest.mark.parametrize("last_is_written", [False, True])
async def test_a_crash_while_a_cancel_goes_along(
    entries: int, last_is_written: bool, open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> None:
        try:
            await book(ctx, "Bern")
        finally:
            await ctx.step(undo)

    async def undo() -> None:
        pass

    world = await open_work(handle)
    await world.kill()
    await world.open(entries, last_is_written=last_is_written)
    token = await world.start("run")
    await world.waits_at(token, "book#1.start")
    await world.cancel(token)
    await asyncio.wait(
        [
            asyncio.ensure_future(world.database.dead.wait()),
            asyncio.ensure_future(world.ended(token)),
        ],
        return_when=asyncio.FIRST_COMPLETED,
    )
    await world.reopen()
    assert (await world.failure(token))[0] == "canceled"
    [operation] = remote.operations.values()
    assert operation.cancels >= 1


async def test_an_operation_that_is_canceled_while_paused_takes_its_calls_along(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    changing = iter(["Bern", "Chur"])

    async def handle(ctx: DurableContext, value: None) -> None:
        await ctx.call(Shipping.book, Parcel(to="Davos"), endpoint="shipping")
        handle = await ctx.start_call(Shipping.book, Parcel(to="Sils"), endpoint="shipping")
        await ctx.start_call(Shipping.book, Parcel(to="Thun"), endpoint="shipping")
        await handle.cancel()
        await book(ctx, next(changing))

    world = await open_work(handle)
    token = await world.start("run")
    [first] = await remote.started()
    await remote.complete(world.database, first, {"id": 1})
    await world.waits_at(token, "book#4.start")
    await world.reopen()
    await world.paused(token)
    remote.script["cancel"] = [failure(503, "UNAVAILABLE", "later")]
    await world.cancel(token)
    assert (await world.failure(token))[0] == "canceled"
    await until(lambda: remote.requests.count("cancel") == 4)
    await until(lambda: sum(o.cancels for o in remote.operations.values()) == 3)
    canceled = {o.input["to"]: o.cancels for o in remote.operations.values()}
    assert canceled == {"Davos": 0, "Sils": 1, "Thun": 1, "Bern": 1}


async def test_an_operation_that_is_ended_by_force_takes_its_calls_along(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> None:
        await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        try:
            await ctx.sleep(timedelta(hours=1))
        finally:
            await asyncio.Event().wait()

    settings = EngineSettings(suspend_after_seconds=3600.0, cleanup_seconds=0.2)
    world = await open_work(handle, settings=settings)
    token = await world.start("run")
    await world.waits_at(token, "sleep#1")
    await world.cancel(token)
    assert (await world.failure(token))[0] == "canceled"
    [operation] = remote.operations.values()
    await until(lambda: operation.cancels == 1)


async def test_a_call_has_a_timeout_of_its_own(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> str:
        try:
            await ctx.call(
                Shipping.book,
                Parcel(to="Bern"),
                endpoint="shipping",
                timeout=timedelta(seconds=0.2),
            )
        except TimeoutError as error:
            return f"{type(error).__name__}: {error.args[0]}"
        return "too late"

    world = await open_work(handle)
    token = await world.start("run")
    [operation] = await remote.started()
    assert 0 < float(operation.headers["operation-timeout"].removesuffix("ms")) <= 200
    said = "CallTimedOut: TimeoutError: shipping/v1/book at 'shipping' did not end in time"
    assert await world.result(token) == said
    assert operation.cancels == 1


async def test_a_call_that_the_handler_cancels_is_canceled(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> str:
        try:
            async with asyncio.timeout(0.2):
                await book(ctx, "Bern")
        except TimeoutError:
            return "gave up"
        return "too late"

    world = await open_work(handle)
    assert await world.result(await world.start("run")) == "gave up"
    [operation] = remote.operations.values()
    assert operation.cancels == 1


# ------------------------------------------------------------ start_call


@MODES
async def test_a_started_call_is_waited_for_later(
    settings: EngineSettings, open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[Any]:
        handle = await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        await ctx.wait_for("go")
        booking = await handle.result()
        return [handle.token, booking.id, (await handle.result()).id]

    world = await open_work(handle, settings=settings)
    token = await world.start("run")
    [operation] = await remote.started()
    await world.waits_at(token, "book#1")
    await remote.complete(world.database, operation, {"id": 7})
    await world.reopen()
    await world.engine.signal(token, "go", b"null")
    assert await world.result(token) == ["remote-1", 7, 7]
    assert len(remote.operations) == 1


async def test_a_started_call_may_have_its_result_at_once(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[Any]:
        handle = await ctx.start_call(Shipping.quote, 4, endpoint="shipping")
        await handle.cancel()
        return [handle.token, await handle.result()]

    remote.on_start = lambda operation: succeeded(40)
    world = await open_work(handle)
    assert await world.result(await world.start("run")) == [None, 40]
    assert remote.requests == ["start"]


async def test_a_started_call_may_be_canceled(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> str:
        handle = await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        await handle.cancel()
        try:
            await handle.result()
        except OperationError as error:
            return error.state.value
        return "succeeded"

    remote.script["cancel"] = [failure(503, "UNAVAILABLE", "later")]
    world = await open_work(handle)
    token = await world.start("run")
    await remote.asked("cancel", 2)
    [operation] = remote.operations.values()
    await remote.complete(world.database, operation, "as you wish", state="canceled")
    assert await world.result(token) == "canceled"


async def test_a_refused_cancel_is_an_error(open_work: OpenWorld, remote: FakeRemote) -> None:
    async def handle(ctx: DurableContext, value: None) -> str:
        handle = await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        try:
            await handle.cancel()
        except CallError as error:
            return error.type_name
        return "canceled"

    remote.script["cancel"] = [failure(501, "NOT_IMPLEMENTED", "no")]
    world = await open_work(handle)
    assert await world.result(await world.start("run")) == "NOT_IMPLEMENTED"


async def test_an_overtaken_start_has_its_token_from_the_completion(
    open_work: OpenWorld, remote: FakeRemote
) -> None:
    async def handle(ctx: DurableContext, value: None) -> list[Any]:
        handle = await ctx.start_call(Shipping.book, Parcel(to="Bern"), endpoint="shipping")
        return [handle.token, (await handle.result()).id]

    remote.script["start"] = [LOST, *[failure(503, "UNAVAILABLE", "later")] * 100]
    world = await open_work(handle)
    token = await world.start("run")
    [operation] = await remote.started()
    await remote.complete(world.database, operation, {"id": 7})
    assert await world.result(token) == ["remote-1", 7]


# ------------------------------------------------------------ several processes


@MODES
async def test_a_completion_reaches_the_operation_wherever_it_runs(
    settings: EngineSettings, postgres_url: str, remote: FakeRemote
) -> None:
    replicas = [
        Replica(postgres_url, [Work(book)], settings=settings, outgoing=remote.outgoing)
        for _ in range(2)
    ]
    here, there = [await replica.open() for replica in replicas]
    try:
        token = await here.start("run", "Bern")
        [operation] = await remote.started()
        if settings is SUSPENDING:
            await until(lambda: not here.engine.live)
        await remote.complete(there.database, operation, {"id": 7})
        assert await there.result(token) == 7
        assert await there.database.fetch(LOAD_SIGNALS, {"token": token}) == []
        assert len(remote.operations) == 1
    finally:
        for replica in replicas:
            await replica.lose()
