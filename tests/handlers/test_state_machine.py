"""Starts, signals, cancels, deadlines, crashes and deploys in any order, against a small model.

The engine is the real one, on a SQLite file, with a clock that the test moves. The model knows what
a handler would do that nothing ever happened to, and so how each operation may end and when.
"""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from nexusrpc import HandlerError, OperationError

from callbacks.outbox import Registration
from handlers import DurableContext
from handlers.engine import EngineSettings
from handlers.requests import OperationKey, Started, StartRequest, Succeeded
from handlers.testing import TestGateway
from nexus_spec import PayloadSerializer
from tests.testing.orders import work

T = TypeVar("T")

HOUR_MS = 3_600_000
WAIT_MS = 10 * HOUR_MS
KEY = OperationKey(endpoint="default", service="Work", operation="run", caller="")
SERIALIZER = PayloadSerializer()
# Whatever is in a plan ends by then: five waits of ten hours, and some patience with suspects.
LONG_ENOUGH = timedelta(hours=60)

PLANS = st.lists(st.sampled_from(["step", "sleep", "wait", "branches"]), max_size=5)
# No sum of these is a number of hours: nothing happens in the same moment as a deadline.
DEADLINES = st.sampled_from([None, timedelta(minutes=91), timedelta(minutes=331)])
PASSING = st.sampled_from([timedelta(minutes=m) for m in (1, 17, 60, 420, 1500)])


@dataclass
class Operation:
    """What the model knows of one operation."""

    token: str
    plan: list[str]
    catches: bool
    request: StartRequest
    started_at: int
    deadline_at: int | None
    callbacks: int = 1
    signals: dict[str, int] = field(default_factory=dict)  # when each came, by its id
    cancel_at: int | None = None
    losses: int = 0
    in_order: bool = True  # nothing happened to it while it was still at work
    ended: tuple[Any, ...] | None = None  # as it was first seen

    def outcome(self, now: int) -> tuple[int, list[str]] | None:
        """Return when a handler left in peace would have ended by now, and with what."""
        at = self.started_at
        said = list(self.signals.items())
        log: list[str] = []
        for n, what in enumerate(self.plan):
            if what == "sleep":
                at += HOUR_MS
            elif what == "wait" and said and said[0][1] < at + WAIT_MS:
                id, came_at = said.pop(0)
                at = max(at, came_at)
                log.append(f"said {id}")
            elif what == "wait":
                at += WAIT_MS
                log.append("nothing said")
            elif what == "step":
                log.append(f"{n}")
            else:
                log += [f"{n}a", f"{n}b"]
            if at > now:
                return None
        return at, log

    def allowed(self, now: int) -> set[str]:
        """Return the states in which the operation may be seen; `open` is one of them."""
        interrupts = {}
        if self.cancel_at is not None:
            interrupts[self.cancel_at] = "succeeded" if self.catches else "canceled"
        if self.deadline_at is not None and self.deadline_at <= now:
            interrupts.setdefault(self.deadline_at, "failed")
        done = self.outcome(now)
        if self.losses > 1 or not self.in_order:
            # How late a suspect goes on, and what came first, the model does not say.
            return {"open", "succeeded", *interrupts.values()}
        if interrupts:
            first = min(interrupts)
            done_before = self.outcome(first)
            if done_before is None or done_before[0] >= first:
                return {interrupts[first]}
        return {"open"} if done is None else {"succeeded"}


class World:
    """Counts what the steps do."""

    def __init__(self) -> None:
        self.done: Counter[tuple[str, str]] = Counter()

    async def do(self, token: str, what: str) -> str:
        await asyncio.sleep(0)
        self.done[token, what] += 1
        return what

    async def handler(self, ctx: DurableContext, input: dict[str, Any]) -> list[str]:
        log: list[str] = []
        token = ctx.operation_token
        try:
            for n, what in enumerate(input["plan"]):
                match what:
                    case "step":
                        log.append(await ctx.step(self.do, token, f"{n}"))
                    case "branches":
                        steps = [ctx.step(self.do, token, f"{n}{part}") for part in "ab"]
                        log += await ctx.gather(*steps)
                    case "sleep":
                        await ctx.sleep(timedelta(milliseconds=HOUR_MS))
                    case "wait":
                        wait = timedelta(milliseconds=WAIT_MS)
                        try:
                            log.append(f"said {await ctx.wait_for('word', str, timeout=wait)}")
                        except TimeoutError:
                            log.append("nothing said")
        except asyncio.CancelledError:
            await ctx.step(self.do, token, "undo")
            if input["catches"]:
                return ["undone"]
            raise
        return log


class Machine(RuleBasedStateMachine):
    """The engine under the model's eyes."""

    operations: Bundle[Operation] = Bundle("operations")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.connection: sqlite3.Connection | None = None
        self.known: list[Operation] = []
        self.recorded: dict[tuple[str, str], int] = {}  # how often a recorded step had run
        self.gateway = TestGateway(
            [work(self.world.handler)],
            settings=EngineSettings(poison_after=1000, retention=timedelta(days=10_000)),
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        self.run(self.gateway.settle())

    @property
    def now(self) -> int:
        return self.gateway.clock.now_ms()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.connection is None:
            self.connection = sqlite3.connect(self.gateway.database)
        return self.connection.execute(query).fetchall()

    # ------------------------------------------------------------ rules

    @initialize()
    def open(self) -> None:
        self.run(self.gateway.__aenter__())

    @rule(target=operations, plan=PLANS, catches=st.booleans(), deadline=DEADLINES)
    def start(self, plan: list[str], catches: bool, deadline: timedelta | None) -> Operation:
        operation = self.begin(plan, catches, deadline)
        self.settle()
        return operation

    @rule(
        target=operations,
        plan=PLANS,
        catches=st.booleans(),
        turns=st.integers(0, 12),
        then=st.sampled_from(["cancel", "crash", "restart"]),
    )
    def start_and_hurry(self, plan: list[str], catches: bool, turns: int, then: str) -> Operation:
        """Do something to an operation that is still at work."""
        operation = self.begin(plan, catches, None)
        operation.in_order = False

        async def a_while() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(a_while())
        match then:
            case "cancel":
                self.cancel(operation)
            case "crash":
                self.crash()
            case "restart":
                self.restart()
        return operation

    @rule(target=operations, known=operations, other_callback=st.booleans())
    def start_again(self, known: Operation, other_callback: bool) -> Any:
        request = known.request
        if other_callback and known.callbacks < 10:
            known.callbacks += 1
            request = self.request(
                request.request_id, request.body, request.operation_timeout, known.callbacks
            )
        answer = self.answer(self.gateway.engine.start(request))
        assert not isinstance(answer, Started) or answer.token == known.token
        self.check_answer(known, answer)
        self.settle()
        return multiple()

    @rule(known=operations, id=st.sampled_from("abc"))
    def signal(self, known: Operation, id: str) -> None:
        has_ended = self.state(known) != "open"
        said = json.dumps(id).encode()
        try:
            new = self.run(self.gateway.engine.signal(known.token, "word", said, id))
        except HandlerError:
            assert has_ended
            assert id not in known.signals
        else:
            assert new is (id not in known.signals)
            assert not (new and has_ended)
            known.signals.setdefault(id, self.now)
        self.settle()

    @rule(known=operations)
    def cancel(self, known: Operation) -> None:
        counts = known.cancel_at is None and self.state(known) == "open"
        self.run(self.gateway.engine.cancel(KEY, known.token, {}))
        if counts:
            known.cancel_at = self.now
        self.settle()

    @rule(passing=PASSING)
    def time_passes(self, passing: timedelta) -> None:
        self.run(self.gateway.clock.advance(passing))

    @rule()
    def crash(self) -> None:
        for operation in self.known:
            operation.losses += 1
        self.run(self.gateway.crash())
        self.settle()

    @rule()
    def restart(self) -> None:
        self.run(self.gateway.restart())
        self.settle()

    @precondition(lambda self: self.known)
    @rule(known=operations)
    def read(self, known: Operation) -> None:
        self.check_answer(known, self.answer(self.gateway.engine.result(KEY, known.token, 0.0)))

    # ------------------------------------------------------------ what always holds

    @invariant()
    def every_operation_is_as_the_model_allows(self) -> None:
        for known in self.known:
            assert self.state(known) in known.allowed(self.now), known

    @invariant()
    def an_operation_ends_once_and_with_what_it_did(self) -> None:
        for token, *ended in self.rows(
            "SELECT token, state, output, failure, closed_at, epoch FROM operation"
            " WHERE closed_at IS NOT NULL"
        ):
            [known] = [known for known in self.known if known.token == token]
            known.ended = known.ended or tuple(ended)
            assert known.ended == tuple(ended)
            if ended[0] == "succeeded" and known.losses < 2 and known.in_order:
                done = known.outcome(self.now)
                undone = known.catches and known.cancel_at is not None
                log = json.loads(ended[1])
                assert (done is not None and log == done[1]) or (undone and log == ["undone"])

    @invariant()
    def what_is_recorded_is_never_done_again(self) -> None:
        for token, output in self.rows("SELECT token, output FROM journal WHERE kind = 'step'"):
            what = token, json.loads(output)
            times = self.world.done[what]
            assert self.recorded.setdefault(what, times) == times
            [known] = [known for known in self.known if known.token == token]
            # Between its end and its record a process may be lost: then, and only then, again.
            assert times == 1 or times <= 1 + known.losses

    @invariant()
    def no_entry_is_of_a_later_claim_than_its_operation(self) -> None:
        assert not self.rows(
            "SELECT * FROM journal JOIN operation USING (token)"
            " WHERE journal.epoch > operation.epoch"
        )

    @invariant()
    def every_callback_is_there_once_and_frozen_at_the_end(self) -> None:
        rows = self.rows(
            "SELECT token, count(*), count(DISTINCT slot), count(body) FROM callback GROUP BY token"
        )
        by_token = {token: counts for token, *counts in rows}
        for known in self.known:
            callbacks, slots, frozen = by_token[known.token]
            assert callbacks == slots == known.callbacks
            assert frozen == (callbacks if known.ended else 0)

    @invariant()
    def nothing_is_left_in_nobody_s_hands(self) -> None:
        live = [replica for (replica,) in self.rows("SELECT id FROM replica")]
        for state, run_at, owner, losses in self.rows(
            "SELECT state, run_at, owner, losses FROM operation WHERE closed_at IS NULL"
        ):
            if state == "ready":
                assert run_at is not None
                assert run_at > self.now
            else:
                assert state == "running"
                assert owner in live or losses > 1

    def teardown(self) -> None:
        try:
            if self.known:
                self.run(self.gateway.clock.advance(LONG_ENOUGH))
                states = {known.token: self.state(known) for known in self.known}
                assert "open" not in states.values(), states
                self.every_operation_is_as_the_model_allows()
                self.an_operation_ends_once_and_with_what_it_did()
                self.what_is_recorded_is_never_done_again()
        finally:
            if self.connection is not None:
                self.connection.close()
            self.run(self.gateway.__aexit__(None, None, None))
            self.run(self.loop.shutdown_asyncgens())
            self.loop.close()

    # ------------------------------------------------------------ asking

    def answer(self, asked: Coroutine[Any, Any, T]) -> T | OperationError:
        try:
            return self.run(asked)
        except OperationError as error:
            return error

    def check_answer(self, known: Operation, answer: object) -> None:
        match answer:
            case OperationError():
                assert answer.state.value == self.state(known)
            case Succeeded():
                assert self.state(known) == "succeeded"
            case _:
                # It may have ended since: that is seen the next time.
                assert answer is None or isinstance(answer, Started)

    def begin(self, plan: list[str], catches: bool, deadline: timedelta | None) -> Operation:
        body = SERIALIZER.serialize({"plan": plan, "catches": catches}).data
        request = self.request(f"r{len(self.known)}", body, deadline, 1)
        answer = self.run(self.gateway.engine.start(request))
        assert isinstance(answer, Started)
        after_ms = None if deadline is None else round(deadline.total_seconds() * 1000)
        operation = Operation(
            token=answer.token,
            plan=plan,
            catches=catches,
            request=request,
            started_at=self.now,
            deadline_at=None if after_ms is None else self.now + after_ms,
        )
        self.known.append(operation)
        return operation

    def request(
        self, request_id: str, body: bytes, deadline: timedelta | None, callback: int
    ) -> StartRequest:
        url = f"http://caller.example/{callback}"
        return StartRequest(
            key=KEY,
            request_id=request_id,
            body=body,
            content_headers={"content-type": "application/json"},
            operation_timeout=deadline,
            callback=Registration(url, "http://caller.example:80", {}),
        )

    def state(self, known: Operation) -> str:
        [(state,)] = self.rows(f"SELECT state FROM operation WHERE token = '{known.token}'")  # noqa: S608  # our own token
        return state if state in {"succeeded", "failed", "canceled"} else "open"


TestStateMachine = Machine.TestCase
TestStateMachine.settings = settings(
    max_examples=60, stateful_step_count=25, derandomize=True, deadline=None, print_blob=True
)


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(20))
@pytest.mark.parametrize("what", ["cancel", "signal"])
async def test_what_is_said_to_an_operation_that_just_leaves_memory_is_heard(
    what: str, turns: int
) -> None:
    """Found by the machine: the word reached the memory that was being left, and nobody else."""
    plan = {"plan": ["wait"], "catches": True}
    at_once = EngineSettings(suspend_after_seconds=0.001)
    async with TestGateway([work(World().handler)], settings=at_once) as gateway:
        run = await gateway.start(("Work", "run"), plan)
        await run.until_waiting()
        gateway.clock.jump(gateway.clock.now_ms() + 1)
        for _ in range(turns):
            await asyncio.sleep(0)
        await (run.cancel() if what == "cancel" else run.signal("word", "hello"))
        began = gateway.clock.now
        assert await run.result() == (["undone"] if what == "cancel" else ["said hello"])
        assert gateway.clock.now - began < timedelta(seconds=1)
