"""Calls of a handler to other endpoints: started once, waited for however long, canceled with it.

```
begin ─► start, again until it is answered ─► wait for the completion ─► outcome
              │ an outcome at once, or a refusal      │ asked for, where nobody calls back
              └───────────────────────────────────────┴─► outcome
```

A crash in any place goes on from the last record: a start that may have been sent is sent again
under the same request id, which the other side knows.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import random
from typing import Any

from nexusrpc import Content

from clients.service_names import ServiceNames
from handlers.call_journal import (
    BEGIN,
    START,
    CallFailed,
    cancel_ref,
    outcome_columns,
    recorded_outcome,
    target_to_json,
    timed_out,
)
from handlers.call_plan import CallableOperation, CallPlan, plan_call
from handlers.call_requests import CallRequests
from handlers.errors import CallError, Diverged
from handlers.execution import Body, Execution
from handlers.journal import Kind, part_of
from handlers.live_operation import LiveOperation
from handlers.outgoing_calls import (
    CallNotAnswered,
    CallRefused,
    CallStarted,
    CannotBeAsked,
    OutgoingCalls,
)
from handlers.poll_times import Questions, retry_seconds
from handlers.store.journals import JournalEntry
from handlers.tracing import Tracing
from nexus_spec import Completion, InvalidWireValue, OperationState, PayloadSerializer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What the calls of all operations of a process have in common.

    Attributes:
        outgoing: Sends requests.
        serializer: Writes inputs and reads results.
        tracing: The trace that goes on at the other side.
        poll_seconds: How long the result of a call that was just started is asked for in memory.
        cancel_seconds: For how long a call is asked to cancel while its handler cleans up.
        names: Finds the service of an operation.
    """

    outgoing: OutgoingCalls
    serializer: PayloadSerializer
    tracing: Tracing
    poll_seconds: float
    cancel_seconds: float
    names: ServiceNames


class Calls:
    """The calls of one run of a handler.

    Args:
        execution: The run.
        operation: The operation that calls.
        settings: What all calls have in common.
    """

    def __init__(
        self, execution: Execution, operation: LiveOperation, settings: CallSettings
    ) -> None:
        self._execution = execution
        self._journal = operation.journal
        self._recorder = execution.recorder
        self._settings = settings
        self._requests = CallRequests(execution, operation, settings.outgoing, settings.tracing)

    # ------------------------------------------------------------ what a handler may ask

    def plan(
        self,
        op: CallableOperation,
        input: Any,
        *,
        endpoint: str,
        service: type | str | None,
        timeout: timedelta | None,
        headers: Mapping[str, str] | None,
    ) -> CallPlan:
        """Return what is to be called.

        Raises:
            StepArgumentsInvalid: It cannot be called like this.
        """
        return plan_call(
            self._settings.names,
            self._settings.serializer,
            op,
            input,
            endpoint=endpoint,
            service=service,
            timeout=timeout,
            headers=headers,
        )

    async def call(self, plan: CallPlan) -> Any:
        """Start an operation elsewhere and return its result.

        Raises:
            OperationError: It ended failed or canceled.
            CallError: It was refused, or took too long.
            asyncio.CancelledError: This operation is to end; the other was asked to cancel.
        """
        entry = await self._perform(plan, partial(self._run_call, plan))
        return self._value(plan, entry)

    async def start(self, plan: CallPlan) -> "StartedCall":
        """Start an operation elsewhere and return as soon as it is accepted there.

        Raises:
            OperationError: It ended at once, failed or canceled.
            CallError: It was refused.
            asyncio.CancelledError: This operation is to end; the other was asked to cancel.
        """
        entry = await self._perform(plan, partial(self._run_start, plan))
        if recorded_outcome(entry) is None:
            return StartedCall(plan, entry.key, entry.ref, entry.created_at)
        value = self._value(plan, entry)
        return StartedCall(plan, entry.key, None, entry.created_at, (value,))

    async def result(self, started: "StartedCall") -> Any:
        """Return the result of what `start` started; otherwise as `call`."""
        if started.value is not None:
            return started.value[0]
        if started.awaited:
            raise RuntimeError(f"the result of {started.key!r} is being waited for already")
        plan = started.plan
        started.awaited = True
        try:
            entry = await self._execution.perform(
                f"{plan.name}.result", Kind.CALL, partial(self._run_wait, started)
            )
        except asyncio.CancelledError:
            await self._cancel_along(plan, started.key)
            raise
        finally:
            started.awaited = False
        value = self._value(plan, entry)
        started.value = (value,)
        return value

    async def cancel(self, started: "StartedCall") -> None:
        """Ask the other side to cancel what `start` started; it may still end in any state.

        Raises:
            CallError: It refuses.
            asyncio.CancelledError: This operation is to end.
        """
        if started.token is None:
            return
        plan = started.plan
        entry = await self._execution.perform(
            f"{plan.name}.cancel", Kind.CALL, partial(self._run_cancel, plan, started.key, None)
        )
        if isinstance(refused := recorded_outcome(entry), CallError):
            raise refused

    # ------------------------------------------------------------ what is recorded of it

    async def _perform(self, plan: CallPlan, body: Body) -> JournalEntry:
        """Make a call of the context of it, and have a cancel that comes meanwhile go along."""
        try:
            return await self._execution.perform(
                plan.name, Kind.CALL, body, args_hash=plan.args_hash
            )
        except asyncio.CancelledError:
            await self._cancel_along(plan, self._key_of_last(plan))
            raise

    async def _run_call(self, plan: CallPlan, key: str, entry: JournalEntry | None) -> JournalEntry:
        outcome: CallStarted | Completion | CallFailed | None
        begin = await self._begin(plan, key)
        start = self._journal.get(part_of(key, START))
        fresh = start is None
        if start is None:
            outcome = self._requests.completion(key)
            if outcome is None:
                outcome = await self._start(plan, key, begin)
            if not isinstance(outcome, CallStarted):
                return await self._record(plan.args_hash, key, key, outcome)
            start = self._recorder.entry(part_of(key, START), Kind.CALL, ref=outcome.token)
            await self._recorder.append(start)
        assert start.ref is not None
        end = await self._wait(plan, key, start.ref, start.created_at, begin.wake_at, fresh=fresh)
        return await self._record(plan.args_hash, key, key, end)

    async def _run_start(
        self, plan: CallPlan, key: str, entry: JournalEntry | None
    ) -> JournalEntry:
        begin = await self._begin(plan, key)
        outcome: CallStarted | Completion | CallFailed | None = None
        if self._requests.completion(key) is None:
            outcome = await self._start(plan, key, begin)
        if (early := self._requests.completion(key)) is not None:
            # It waits for `result`, like any other that came after the start was answered.
            outcome = CallStarted(early.token, ())
        assert outcome is not None
        if not isinstance(outcome, CallStarted):
            return await self._record(plan.args_hash, key, key, outcome)
        started = self._recorder.entry(key, Kind.CALL, args_hash=plan.args_hash, ref=outcome.token)
        await self._recorder.append(started)
        return started

    async def _run_wait(
        self, started: "StartedCall", key: str, entry: JournalEntry | None
    ) -> JournalEntry:
        begin = self._journal.get(part_of(started.key, BEGIN))
        end = await self._wait(
            started.plan,
            started.key,
            started.token or "",
            started.started_at,
            None if begin is None else begin.wake_at,
            fresh=True,
        )
        return await self._record(None, key, started.key, end)

    async def _begin(self, plan: CallPlan, key: str) -> JournalEntry:
        """Record that a call is made, before the other side can know of it."""
        begun = self._journal.get(part_of(key, BEGIN))
        if begun is None:
            self._requests.is_called_back(plan.target.endpoint)  # checks that it is there at all
            wake_at = None
            if plan.timeout is not None:
                timeout_ms = round(plan.timeout.total_seconds() * 1000)
                wake_at = self._requests.now_ms() + timeout_ms
            begun = self._recorder.entry(
                part_of(key, BEGIN),
                Kind.CALL,
                args_hash=plan.args_hash,
                output=target_to_json(plan.target),
                wake_at=wake_at,
            )
            await self._recorder.append(begun)
        elif begun.args_hash != plan.args_hash:
            raise Diverged(
                f"the call {key!r} was recorded with other arguments than the code now gives it"
            )
        return begun

    async def _record(
        self, args_hash: bytes | None, key: str, call: str, outcome: Completion | CallFailed
    ) -> JournalEntry:
        columns = outcome_columns(call, outcome)
        entry = self._recorder.entry(key, Kind.CALL, args_hash=args_hash, **columns)
        await self._recorder.append(entry)
        return entry

    # ------------------------------------------------------------ start

    async def _start(
        self, plan: CallPlan, key: str, begin: JournalEntry
    ) -> CallStarted | Completion | CallFailed:
        requests = self._requests
        while True:
            now = requests.now_ms()
            if begin.wake_at is not None and now >= begin.wake_at:
                return timed_out(plan.target)
            try:
                return await requests.start(key, plan, begin.wake_at)
            except CallRefused as refused:
                return CallFailed(refused.type_name, refused.message)
            except CallNotAnswered as unanswered:
                now = requests.now_ms()
                seconds = retry_seconds(now - begin.created_at, random())
                seconds = max(seconds, unanswered.retry_after_seconds)
                logger.info(
                    "a call could not be started and is tried again",
                    extra={
                        "token": self._execution.identity.token,
                        "step": key,
                        "error": str(unanswered),
                    },
                )
            wake_at = _earliest(now + round(seconds * 1000), begin.wake_at)
            await requests.until_completed(key, wake_at, soon=False)
            if (early := requests.completion(key)) is not None:
                return early

    # ------------------------------------------------------------ wait

    async def _wait(
        self,
        plan: CallPlan,
        key: str,
        token: str,
        started_at: int,
        until: int | None,
        *,
        fresh: bool,
    ) -> Completion | CallFailed:
        requests = self._requests
        questions = Questions(
            started_at,
            requests.now_ms(),
            called_back=requests.is_called_back(plan.target.endpoint),
            hold_ms=round(self._settings.poll_seconds * 1000) if fresh else 0,
        )
        if not token:
            questions.give_up()
        while True:
            if (completion := requests.completion(key)) is not None:
                return completion
            now = requests.now_ms()
            if until is not None and now >= until:
                await self._cancel_overdue(plan, token)
                return timed_out(plan.target)
            if questions.next_at is not None and now >= questions.next_at:
                answer = await self._ask(plan, key, token, questions)
                if answer is not None:
                    return answer
            else:
                wake_at = _earliest(questions.next_at, until)
                await requests.until_completed(key, wake_at, soon=questions.called_back)

    async def _ask(
        self, plan: CallPlan, key: str, token: str, questions: Questions
    ) -> Completion | CallFailed | None:
        asked_at = self._requests.now_ms()
        retry_after = 0.0
        try:
            hold_seconds = questions.hold_seconds(asked_at)
            answer = await self._requests.ask(key, plan.target, token, hold_seconds)
            if answer is not None:
                return answer
        except CannotBeAsked as error:
            if not questions.called_back:
                raise Diverged(
                    f"nobody can tell how {key!r} ends: {error}. Or have it call back: set "
                    f"public_url, and endpoints.{plan.target.endpoint}.callbacks to auto"
                ) from error
            questions.give_up()
            return None
        except (CallRefused, CallNotAnswered) as error:
            if isinstance(error, CallRefused) and not questions.called_back:
                return CallFailed(error.type_name, error.message)
            if isinstance(error, CallNotAnswered):
                retry_after = error.retry_after_seconds
            self._log("cannot ask how a call has ended", key, error)
        questions.asked(asked_at, self._requests.now_ms(), retry_after)
        return None

    # ------------------------------------------------------------ cancel

    async def _cancel_along(self, plan: CallPlan, key: str) -> None:
        """Ask for a cancel where the handler was canceled; it then goes on being canceled."""
        if self._execution.closed:
            return
        until = self._requests.now_ms() + round(self._settings.cancel_seconds * 1000)
        await self._execution.perform(
            f"{plan.name}.cancel", Kind.CALL, partial(self._run_cancel, plan, key, until)
        )

    async def _run_cancel(
        self, plan: CallPlan, call: str, until: int | None, key: str, entry: JournalEntry | None
    ) -> JournalEntry:
        failed = await self._cancel(plan, call, until)
        if failed is not None:
            self._log("a call was not canceled", call, failed)
        columns: dict[str, Any] = {}
        if failed is not None:
            described = {"type": failed.type_name, "message": failed.message, "attempts": 1}
            columns["error"] = json.dumps(described)
        cancel = self._recorder.entry(key, Kind.CALL, ref=cancel_ref(call), **columns)
        await self._recorder.append(cancel)
        return cancel

    async def _cancel(self, plan: CallPlan, key: str, until: int | None) -> CallFailed | None:
        """Ask until the other side has heard it; return why it has not, if so."""
        requests = self._requests
        began = requests.now_ms()
        while not self._is_over(key):
            try:
                token = self._token(key)
                if token is None:
                    # It may have been started all the same: the same start again tells its token.
                    answer = await requests.start(key, plan, None)
                    if not isinstance(answer, CallStarted):
                        return None
                    token = answer.token
                    start = self._recorder.entry(part_of(key, START), Kind.CALL, ref=token)
                    await self._recorder.append(start)
                if token:
                    await requests.cancel(plan.target, token)
                return None
            except CallRefused as refused:
                return CallFailed(refused.type_name, refused.message)
            except CallNotAnswered as unanswered:
                now = requests.now_ms()
                seconds = max(retry_seconds(now - began, random()), unanswered.retry_after_seconds)
                if until is not None and now + seconds * 1000 >= until:
                    return CallFailed("Unanswered", str(unanswered))
            if until is not None:
                await requests.rest(seconds)  # the handler is to end, and so stays in memory
            else:
                wake_at = now + round(seconds * 1000)
                await requests.until_completed(key, wake_at, soon=False)
        return None

    async def _cancel_overdue(self, plan: CallPlan, token: str) -> None:
        if not token:
            return
        try:
            await self._requests.cancel(plan.target, token)
        except (CallRefused, CallNotAnswered) as error:
            # It was told its time at the start.
            self._log("an overdue call was not canceled", plan.name, error)

    def _is_over(self, key: str) -> bool:
        """Whether there is nothing to cancel: the call was never begun, or has ended."""
        if self._journal.get(part_of(key, BEGIN)) is None:
            return True
        entry = self._journal.get(key)
        if entry is not None and recorded_outcome(entry) is not None:
            return True
        return self._requests.completion(key) is not None

    def _token(self, key: str) -> str | None:
        entry = self._journal.get(part_of(key, START)) or self._journal.get(key)
        return None if entry is None else entry.ref

    # ------------------------------------------------------------ values

    def _value(self, plan: CallPlan, entry: JournalEntry) -> Any:
        outcome = recorded_outcome(entry)
        if isinstance(outcome, CallError):
            raise outcome
        assert outcome is not None
        if outcome.state is not OperationState.SUCCEEDED:
            raise outcome.error()
        content = outcome.content or Content(headers={}, data=b"")
        try:
            return self._settings.serializer.decode(content, plan.output_type)
        except InvalidWireValue as error:
            raise self._execution.presence.diverge(
                Diverged(f"the result of {entry.key!r} is not what its definition says: {error}")
            ) from error

    def _key_of_last(self, plan: CallPlan) -> str:
        scope = self._execution.scope()
        return f"{scope.path}{plan.name}#{scope.counters[plan.name]}"

    def _log(self, what: str, key: str, error: Exception | CallFailed) -> None:
        logger.warning(
            what,
            extra={
                "token": self._execution.identity.token,
                "step": key,
                "error": str(error),
            },
        )


@dataclass(eq=False, slots=True)
class StartedCall:
    """What `start` started.

    Attributes:
        plan: What was called.
        key: The call in the journal.
        token: The other side's token; None where the result came at once.
        started_at: When it was accepted, in milliseconds since 1970.
        value: The result, once it is known.
        awaited: Somebody waits for the result.
    """

    plan: CallPlan
    key: str
    token: str | None
    started_at: int
    value: tuple[Any] | None = None
    awaited: bool = False


def _earliest(one: int | None, other: int | None) -> int | None:
    return min((at for at in (one, other) if at is not None), default=None)
