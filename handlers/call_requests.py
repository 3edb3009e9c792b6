"""What a call does while its handler waits: requests to the other side, and waits for its word."""

import asyncio
import uuid
from collections.abc import Awaitable
from typing import TypeVar

from clients.callback_tokens import OutgoingCall
from handlers.call_messages import CALL_MESSAGE, completion_from_message
from handlers.call_plan import CallPlan
from handlers.errors import Diverged
from handlers.execution import Execution
from handlers.live_operation import LiveOperation
from handlers.outgoing_calls import (
    CallStart,
    CallStarted,
    OutgoingCalls,
    RemoteOperation,
    UnknownEndpoint,
)
from handlers.presence import DurableWait, wake
from handlers.tracing import Tracing
from nexus_spec import Completion
from nexus_spec.limits import LINKS

T = TypeVar("T")

_REQUEST_IDS = uuid.UUID("6d1cf0a4-0f0e-5a52-9d0c-3f2f3a1f5b6e")


class CallRequests:
    """The requests and waits of one run of a handler.

    Args:
        execution: The run.
        operation: The operation that calls.
        outgoing: Sends requests.
        tracing: The trace that goes on at the other side.
    """

    def __init__(
        self,
        execution: Execution,
        operation: LiveOperation,
        outgoing: OutgoingCalls,
        tracing: Tracing,
    ) -> None:
        self._presence = execution.presence
        self._suspension = execution.suspension
        self._operation = operation
        self._outgoing = outgoing
        self._tracing = tracing

    def now_ms(self) -> int:
        """Return the time."""
        return self._presence.clock.now_ms()

    # ------------------------------------------------------------ requests

    async def start(self, key: str, plan: CallPlan, until: int | None) -> CallStarted | Completion:
        """Send the start of a call; its links become this operation's.

        Args:
            key: The call.
            plan: What is called.
            until: When it has to have ended, in milliseconds since 1970.

        Raises:
            CallRefused, CallNotAnswered: As `OutgoingCalls.start`.
            Diverged: The settings have no such endpoint: the operation pauses.
        """
        operation = self._operation
        limits = [at for at in (until, operation.deadline_at) if at is not None]
        left = max(1, min(limits) - self.now_ms()) / 1000 if limits else None
        trace = operation.trace_context
        start = CallStart(
            target=plan.target,
            call=OutgoingCall(operation.token, key, plan.target.endpoint),
            request_id=str(uuid.uuid5(_REQUEST_IDS, f"{operation.token}/{key}")),
            content=plan.content,
            timeout_seconds=left,
            headers=plan.headers,
            links=operation.links,
            traceparent=self._tracing.traceparent({"traceparent": trace} if trace else {}),
        )
        answer = await self._send(self._outgoing.start(start))
        self.add_links(answer)
        return answer

    async def cancel(self, target: RemoteOperation, token: str) -> None:
        """Send a request to cancel.

        Raises:
            CallRefused, CallNotAnswered: As `OutgoingCalls.cancel`.
            Diverged: The settings have no such endpoint: the operation pauses.
        """
        await self._send(self._outgoing.cancel(target, token))

    async def ask(
        self, key: str, target: RemoteOperation, token: str, wait_seconds: float
    ) -> Completion | None:
        """Ask how a call has ended; None where it has not, or said so by itself meanwhile.

        Raises:
            CallRefused, CallNotAnswered, CannotBeAsked: As `OutgoingCalls.ask`.
            Diverged: The settings have no such endpoint: the operation pauses.
        """
        await self._presence.may_begin()
        asking = asyncio.ensure_future(self._outgoing.ask(target, token, wait_seconds))
        try:
            # Not counted as a step: a handler that leaves memory does not wait for this.
            await self._until_arrival(key, asking)
            if not asking.done():
                return None
            answer = asking.result()
        except UnknownEndpoint as error:
            raise Diverged(str(error)) from error
        finally:
            asking.cancel()
        if answer is not None:
            self.add_links(answer)
        return answer

    def is_called_back(self, endpoint: str) -> bool:
        """Whether the other side calls back by itself.

        Raises:
            Diverged: The settings have no such endpoint: the operation pauses.
        """
        try:
            self._outgoing.check(endpoint)
        except UnknownEndpoint as error:
            raise Diverged(str(error)) from error
        return self._outgoing.is_called_back(endpoint)

    def add_links(self, source: CallStarted | Completion) -> None:
        """Link this operation to what the other side linked its own to, as far as there is room."""
        for link in source.links:
            if len(self._operation.handler_links) < LINKS:
                self._operation.add_link(link)

    async def _send(self, request: "Awaitable[T]") -> T:
        presence = self._presence
        try:
            await presence.may_begin()
        except BaseException:
            asyncio.ensure_future(request).cancel()
            raise
        presence.steps += 1
        try:
            return await request
        except UnknownEndpoint as error:
            raise Diverged(str(error)) from error
        finally:
            presence.steps -= 1
            if presence.durable and presence.steps == 0:
                self._suspension.consider()

    # ------------------------------------------------------------ waits

    def completion(self, key: str) -> Completion | None:
        """Return what the other side has said of how a call ended, if it has."""
        expected = self._operation.mailbox.expect(
            CALL_MESSAGE, key, self._presence.loop.create_future()
        )
        try:
            if expected.signal is None:
                return None
            completion = completion_from_message(expected.signal.payload)
        finally:
            # Put back: it has been used only when the outcome is recorded.
            self._operation.mailbox.give_up(expected)
        self.add_links(completion)
        return completion

    async def until_completed(self, key: str, wake_at: int | None, *, soon: bool) -> None:
        """Wait for what the other side says of a call, but no longer than until a time.

        Args:
            key: The call.
            wake_at: Milliseconds since 1970; None without limit.
            soon: It may well come soon, so that the handler had better stay in memory a little.
        """
        presence = self._presence
        await presence.may_begin()
        over = presence.loop.create_future()
        timer = None
        if wake_at is not None:
            seconds = (wake_at - self.now_ms()) / 1000
            timer = presence.clock.call_later(max(0.0, seconds), wake, over)
        try:
            with presence.waiting(DurableWait(wake_at, by_message=soon)):
                self._suspension.consider()
                await self._until_arrival(key, over)
        finally:
            if timer is not None:
                timer.cancel()

    async def rest(self, seconds: float) -> None:
        """Wait, in memory."""
        await self._presence.wait(seconds)

    async def _until_arrival(self, key: str, other: "asyncio.Future[T]") -> None:
        """Wait until something is said of a call, or until another future is done."""
        arrival: asyncio.Future[None] = self._presence.loop.create_future()
        expected = self._operation.mailbox.expect(CALL_MESSAGE, key, arrival)

        def done(_: object) -> None:
            wake(arrival)

        other.add_done_callback(done)
        try:
            await self._presence.until(arrival)
        finally:
            other.remove_done_callback(done)
            self._operation.mailbox.give_up(expected)
