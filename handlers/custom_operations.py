"""Operations whose own `OperationHandler` runs them elsewhere: a queue, a batch job, a person.

The row is committed before the handler's `start` runs, so that an operation that is completed at
once, from elsewhere, is known already.
"""

import asyncio
import contextvars
import logging
from dataclasses import dataclass, field
from typing import Any

from nexusrpc import HandlerError, HandlerErrorType, Link, OperationError
from nexusrpc.handler import StartOperationResultSync

from callbacks.database import Database, persist
from handlers.clock import Clock
from handlers.deadlines import Deadlines
from handlers.endings import Ended, Endings, ended_by, ended_of, outcome, succeeded
from handlers.hosting import Hosting
from handlers.live_operation import links_from_json, links_to_json
from handlers.requests import OperationKey, Outcome, Started, StartRequest
from handlers.services import HostedOperation, Kind, ServiceRegistry
from handlers.store.operations import BY_HANDLER_TOKEN, LOAD, StoredOperation, read_operation
from handlers.store.outside import RequestCancel
from handlers.store.running import set_links, started_by_handler
from handlers.store.starting import ForgetStart
from nexus_spec import InvalidWireValue, PayloadSerializer, check_token

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Starting:
    """A handler's `start` under way."""

    done: "asyncio.Future[None]"
    held: dict[str, Ended] = field(default_factory=dict)  # completed before start returned


_starting_here: contextvars.ContextVar[_Starting | None] = contextvars.ContextVar(
    "nexus_gateway_starting", default=None
)


class CustomOperations:
    """Starts, cancels and completes operations that run elsewhere."""

    def __init__(
        self,
        services: ServiceRegistry,
        database: Database,
        endings: Endings,
        deadlines: Deadlines,
        hosting: Hosting,
        serializer: PayloadSerializer,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._services = services
        self._database = database
        self._endings = endings
        self._deadlines = deadlines
        self._hosting = hosting
        self._serializer = serializer
        self._starting: dict[str, _Starting] = {}
        self._loop = asyncio.get_running_loop()

    async def start(
        self, hosted: HostedOperation, request: StartRequest, stored: StoredOperation, value: Any
    ) -> Outcome:
        """Call the handler for a recorded start, which may be a repeated one.

        Raises:
            HandlerError: The handler refused the request; nothing is kept of it.
            OperationError: The operation ended at once, failed or canceled.
        """
        while (other := self._starting.get(stored.token)) is not None:
            # The same request a second time, while the first is still being answered.
            await asyncio.shield(other.done)
            rows = await self._database.fetch(LOAD, {"token": stored.token})
            if not rows:
                raise HandlerError(
                    "an earlier attempt of this request was refused; try again",
                    type=HandlerErrorType.UNAVAILABLE,
                )
            stored = read_operation(rows[0])
            links = links_from_json(stored.handler_links)
            if stored.state.ended:
                return outcome(ended_of(stored), links)
            if stored.handler_token is not None:
                return Started(stored.token, links)
        starting = self._starting[stored.token] = _Starting(self._loop.create_future())
        _starting_here.set(starting)
        try:
            return await self._call_start(hosted, request, stored, value, starting)
        except OperationError as error:
            await self._finish(stored, ended_by(error))
            raise
        except BaseException:
            # Refused, timed out or broken: nothing was accepted, and the caller may try again.
            await self.forget(stored.token)
            raise
        finally:
            _starting_here.set(None)
            del self._starting[stored.token]
            starting.done.set_result(None)

    async def forget(self, token: str) -> None:
        """Take back the record of a start that the handler never accepted."""
        await persist(self._database, ForgetStart(token))

    async def _call_start(
        self,
        hosted: HostedOperation,
        request: StartRequest,
        stored: StoredOperation,
        value: Any,
        starting: _Starting,
    ) -> Outcome:
        answer, links = await self._hosting.start(hosted, request, value)
        if isinstance(answer, StartOperationResultSync):
            ended = succeeded(answer.value, self._serializer)
            if links:
                kept = set_links(stored.token, stored.epoch, links_to_json(links))
                await persist(self._database, kept)
            await self._finish(stored, ended, tuple(links))
            return outcome(ended, tuple(links))
        try:
            check_token(answer.token)
        except InvalidWireValue as error:
            raise TypeError(f"the handler returned an unusable token: {error}") from error
        await persist(
            self._database,
            started_by_handler(stored.token, stored.epoch, answer.token, links_to_json(links)),
        )
        self._deadlines.watch(stored.deadline_at)
        if (early := starting.held.get(answer.token)) is not None:
            await self._finish(stored, early, tuple(links))
        return Started(stored.token, tuple(links))

    async def cancel(
        self,
        hosted: HostedOperation,
        key: OperationKey,
        stored: StoredOperation,
        headers: dict[str, str],
        request_timeout_seconds: float | None,
    ) -> None:
        """Ask the handler to cancel; a second request succeeds without asking again.

        Raises:
            HandlerError: The handler's own, or NOT_IMPLEMENTED where it cannot cancel.
        """
        if stored.state.ended or stored.cancel_requested_at or stored.handler_token is None:
            return
        await self._hosting.cancel(
            hosted, key, stored.handler_token, headers, request_timeout_seconds
        )
        await persist(self._database, RequestCancel(stored.token, self._clock.now_ms()))

    async def complete(self, token: str, ended: Ended) -> bool:
        """End an operation from outside, by its wire token or its handler's own.

        Returns:
            False where it has ended already.

        Raises:
            HandlerError: NOT_FOUND; no operation has this token. CONFLICT; several services'
                handlers use this token, or a durable handler runs the operation.
        """
        stored = await self._find(token)
        if stored is None:
            here = _starting_here.get()
            if here is not None and not here.done.done():
                here.held.setdefault(token, ended)
                return True
            # A start may be about to return this very token; those that begin later will not.
            under_way = {starting.done for starting in self._starting.values()}
            while stored is None and under_way:
                _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                stored = await self._find(token)
        if stored is None:
            raise HandlerError("no operation has this token", type=HandlerErrorType.NOT_FOUND)
        hosted = self._services.get(stored.endpoint, stored.service, stored.operation)
        if hosted is not None and hosted.kind is Kind.DURABLE:
            raise HandlerError(
                "a durable handler runs this operation; it ends when the handler returns",
                type=HandlerErrorType.CONFLICT,
            )
        return await self._finish(stored, ended)

    async def _find(self, token: str) -> StoredOperation | None:
        rows = await self._database.fetch(LOAD, {"token": token})
        if not rows:
            rows = await self._database.fetch(BY_HANDLER_TOKEN, {"handler_token": token})
        if len(rows) > 1:
            raise HandlerError(
                "several operations have this token; use the operation's own token",
                type=HandlerErrorType.CONFLICT,
            )
        return read_operation(rows[0]) if rows else None

    async def _finish(
        self, stored: StoredOperation, ended: Ended, links: tuple[Link, ...] | None = None
    ) -> bool:
        return await self._endings.finish_stored(stored, ended, links)
