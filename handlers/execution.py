"""One run of a durable handler over its operation's journal.

A call that the journal knows returns what was recorded; a new one happens and is recorded before
the handler sees its result. So the handler may run any number of times, in any number of
processes, and every step happens once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from nexusrpc._util import is_async_callable

from callbacks.database import Writer
from handlers.clock import Clock
from handlers.context_call import ContextCall
from handlers.errors import Diverged, InvalidSignal, LeftMemory, StepArgumentsInvalid
from handlers.interruption import Interruption
from handlers.journal import CANCELLED, Journal, Kind, Reason, part_of
from handlers.mailbox import Mailbox
from handlers.presence import Presence
from handlers.recorder import Recorder
from handlers.retry_policy import RetryPolicy
from handlers.scopes import Scope, Scopes, in_scope
from handlers.steps import Call, Retries, Steps, StepSettings, recorded_error
from handlers.store.journals import JournalEntry
from handlers.suspension import Host, Suspension
from handlers.values import check_function, decode, hash_arguments, result_type
from handlers.waits import Waits, check_wait_name

_DEFAULT_RETRY = RetryPolicy()

Body = Callable[[str, JournalEntry | None], Awaitable[JournalEntry]]
"""What a new call does, given its key and its entry if there is one.

Returns the entry that is the call's outcome, once it is written.
"""


@dataclass(eq=False, slots=True)
class Identity:
    """What an execution must know of its operation to write for it."""

    token: str
    epoch: int
    created_at: int


class Execution:
    """Runs a handler once; `DurableContext` is the face that the handler sees of it.

    Every call of the context goes through `perform`; further kinds of calls are built on it.

    Attributes:
        unawaited: The calls of the context that the handler has made and not yet awaited.
    """

    __slots__ = (
        "_interruption",
        "_journal",
        "_presence",
        "_scopes",
        "_steps",
        "_suspension",
        "_waits",
        "identity",
        "recorder",
        "unawaited",
    )

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        mailbox: Mailbox,
        store: Writer,
        steps: StepSettings,
        clock: Clock,
        *,
        host: Host,
        retries: Retries,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.identity = identity
        self._journal = journal
        self._presence = presence = Presence(task, clock)
        self._scopes = Scopes(task, identity.created_at, journal.calls())
        self.recorder = recorder = Recorder(
            identity.token, identity.epoch, journal, store, presence
        )
        self._interruption = Interruption(presence, recorder, host.interrupted)
        self._suspension = Suspension(
            presence,
            self._interruption,
            recorder,
            host,
            self._scopes.branches,
            steps.suspend_after_seconds,
        )
        self._steps = Steps(presence, recorder, steps, retries)
        self._steps.on_idle = self._suspension.consider
        self._waits = Waits(presence, recorder, mailbox, self._suspension)
        self.unawaited: set[ContextCall[Any]] = set()

    # ------------------------------------------------------------ what the engine asks for

    @property
    def closed(self) -> bool:
        """Whether nothing that the handler does counts any more."""
        return self._presence.closed

    @property
    def left(self) -> bool:
        """Whether the handler was taken out of memory before its end."""
        return self._presence.left

    @property
    def diverged(self) -> Diverged | None:
        """Why the code does not match the journal, if it does not."""
        return self._presence.diverged

    @property
    def interrupted(self) -> bool:
        """Whether the handler was told to end."""
        return self._interruption.interrupted

    @property
    def interrupt_reason(self) -> Reason | None:
        """Why the handler was interrupted, once it was."""
        where = self._interruption.where
        return where.reason if self._interruption.interrupted and where is not None else None

    @property
    def ends_for(self) -> Reason | None:
        """Why the handler is to end, also where it has not come to its interruption yet."""
        where = self._interruption.where
        return where.reason if where is not None else None

    @property
    def in_step(self) -> bool:
        """Whether a function of the user is running, and not just waiting to be tried again."""
        return self._presence.steps > 0

    @property
    def waiting(self) -> bool:
        """Whether the handler waits, and only for the time or for something from outside."""
        return self._suspension.all_wait

    @property
    def presence(self) -> Presence:
        """The run's hold on memory, for calls that are built elsewhere."""
        return self._presence

    @property
    def suspension(self) -> Suspension:
        """Has the handler leave memory, for calls that are built elsewhere."""
        return self._suspension

    def interrupt(self, reason: Reason) -> None:
        """Record that the handler is to end, then raise `CancelledError` where it waits."""
        self._interruption.interrupt(reason)

    def leave(self) -> None:
        """Take the handler out of memory: from here on nothing that it does is recorded."""
        self._suspension.forget()
        self._presence.leave()

    def leave_after_step(self) -> None:
        """Take the handler out of memory as soon as the running steps are recorded."""
        self._presence.leave_after_step()

    def check_end(self) -> None:
        """Check that the code asked for all that earlier runs recorded.

        Raises:
            Diverged: It did not.
        """
        self._scopes.check_end()

    def check_awaited(self) -> None:
        """Check that every call of the context was awaited.

        Raises:
            StepArgumentsInvalid: One was not, and so it never happened: a mistake in the code.
        """
        if self.unawaited:
            calls = ", ".join(sorted(f"ctx.{call.what}" for call in self.unawaited))
            raise StepArgumentsInvalid(
                f"{calls} was never awaited, so it never happened: write `await ctx...(...)`"
            )

    def close(self) -> None:
        """The handler has returned: a task that it left behind may record nothing more."""
        self._suspension.forget()
        self._presence.close(self._scopes.branches)

    # ------------------------------------------------------------ calls of the handler

    def scope(self) -> Scope:
        """Return the scope of the calling task."""
        self._presence.check()
        return self._scopes.current()

    def perform(
        self,
        name: str,
        kind: Kind,
        body: Body,
        *,
        args_hash: bytes | None = None,
        resumes: bool = False,
    ) -> Coroutine[Any, Any, JournalEntry]:
        """Make a call of the handler: what an earlier run recorded of it, or else its body.

        The call gets the key `path/name#n`, here and now; it is then awaited. Its body writes the
        entry of that key, which is the call's outcome, and may write further ones under
        `part_of(key, ...)` with `recorder` before; they all count as this one call when the
        handler runs again. A body that waits for long does so in `Waits`, and asks
        `Presence.may_begin` before it touches the world.

        Args:
            name: What the calls of a scope are counted by; without `#` and `/`.
            kind: The kind of the entry.
            body: Runs where the journal has no entry, or always where `resumes`.
            args_hash: What the call was given; it has to be the same on every run.
            resumes: The entry is the beginning of the call, like that of a timer, and not its end.

        Raises:
            Diverged: The journal has another call in this place.
            LeftMemory: The operation has left memory.
            asyncio.CancelledError: The operation is to end, or the handler's own code cancelled
                the call.
        """
        presence = self._presence
        if presence.closed:
            raise LeftMemory
        presence.calls += 1
        scope, key = self._scopes.begin_call(name)
        recorded = False
        if scope.recorded:
            where, interrupted = self._interruption.where, self._interruption.interrupted
            try:
                recorded = self._scopes.is_recorded(scope, key, kind, where, interrupted)
            except Diverged as divergence:
                raise presence.diverge(divergence) from None
        return self._make(scope, key, kind, body, args_hash, resumes, recorded)

    async def _make(
        self,
        scope: Scope,
        key: str,
        kind: Kind,
        body: Body,
        args_hash: bytes | None,
        resumes: bool,
        recorded: bool,
    ) -> JournalEntry:
        presence = self._presence
        interruption = self._interruption
        interrupted_before = interruption.interrupted
        again = False
        entry: JournalEntry | None = None
        try:
            if recorded:
                if self._journal.find_cancelled(key, kind, args_hash) is not None:
                    again = True
                    await interruption.cancelled_again()
                entry = self._journal.find(key, kind, args_hash)
            if interruption.is_at(key, entry):
                await interruption.here()
            if entry is None or resumes:
                if self.recorder.owed:
                    await self.recorder.settle()
                interruption.pending.add(key)
                try:
                    entry = await body(key, entry)
                finally:
                    interruption.pending.discard(key)
                if interruption.is_at(key, entry):
                    await interruption.here()
        except asyncio.CancelledError:
            presence.raise_if_left()
            ours = interruption.interrupted and not interrupted_before
            if not (ours or again or presence.closed):
                self._cancelled_by_handler(key, kind, args_hash)
            raise
        except Diverged as divergence:
            raise presence.diverge(divergence) from None
        if entry.wake_at is None:
            scope.now_ms = entry.created_at
        else:
            scope.now_ms = max(scope.now_ms, entry.wake_at)
        return entry

    def _cancelled_by_handler(self, key: str, kind: Kind, args_hash: bytes | None) -> None:
        """Record that the handler's own code cancelled a call, so that each run goes on from there.

        How the call would have ended counts no more, also where it has ended this very moment.
        """
        self.recorder.owe(
            self.recorder.entry(
                part_of(key, CANCELLED),
                Kind.CANCELLED,
                args_hash=args_hash,
                output=kind.value.encode(),
            )
        )

    async def step(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        name: str | None,
        retry: RetryPolicy | None,
        timeout: timedelta | None,
    ) -> Any:
        """Run a function once, ever; see `DurableContext.step`."""
        check_function(function)
        called = name or getattr(function, "__name__", "")
        if not called or "#" in called or "/" in called:
            raise StepArgumentsInvalid(
                f"{function!r} needs a name without '#' and '/': ctx.step(..., name='charge')"
            )
        is_async = is_async_callable(function)
        if timeout is not None and not is_async:
            raise StepArgumentsInvalid(
                "a timeout needs an `async def` function: a thread cannot be interrupted"
            )
        args_hash = hash_arguments(args)
        declared = result_type(function)
        call = Call(function, args, args_hash, retry or _DEFAULT_RETRY, timeout, is_async, declared)
        entry = await self.perform(
            called, Kind.STEP, partial(self._run_step, call), args_hash=args_hash
        )
        if entry.error is not None:
            raise recorded_error(entry)
        assert entry.output is not None
        try:
            return decode(entry.output, declared)
        except ValueError as error:
            raise self._presence.diverge(
                Diverged(f"the recorded result of {entry.key!r} does not fit {declared}: {error}")
            ) from error

    def _run_step(
        self, call: Call, key: str, entry: JournalEntry | None
    ) -> Awaitable[JournalEntry]:
        assert entry is None
        return self._steps.run(key, call)

    async def sleep(self, duration: timedelta) -> None:
        """Wait; a restart does not begin the wait anew."""
        if not isinstance(duration, timedelta):
            raise StepArgumentsInvalid(
                f"ctx.sleep takes a timedelta, not {duration!r}: timedelta(seconds=5)"
            )

        def body(key: str, entry: JournalEntry | None) -> Awaitable[JournalEntry]:
            return self._waits.sleep(key, duration, entry)

        await self.perform("sleep", Kind.TIMER, body, resumes=True)

    async def wait_for(self, name: str, as_type: Any, timeout: timedelta | None) -> Any:
        """Wait for a signal; see `DurableContext.wait_for`."""
        check_wait_name(name)
        if timeout is not None and not isinstance(timeout, timedelta):
            raise StepArgumentsInvalid(
                f"timeout takes a timedelta, not {timeout!r}: timedelta(hours=1)"
            )
        entry = await self.wait_for_message(name, name, timeout=timeout)
        if entry.output is None:
            raise TimeoutError(f"no signal {name!r} came in time")
        try:
            return decode(entry.output, as_type)
        except ValueError as error:
            raise InvalidSignal(name, str(error)) from error

    async def wait_for_message(
        self,
        called: str,
        name: str,
        *,
        dedupe_id: str | None = None,
        timeout: timedelta | None = None,
    ) -> JournalEntry:
        """Wait for the next message of a name, or the one with that id, as a call of its own.

        Args:
            called: What the call is counted by in the journal.
            name: The signal's name; those that begin with `nexus.` are the gateway's.
            dedupe_id: Which signal of that name, where it has to be a certain one.
            timeout: How long to wait.

        Returns:
            The entry: its output is the payload, its ref the signal's id; both are None where the
            time was over.
        """

        def body(key: str, entry: JournalEntry | None) -> Awaitable[JournalEntry]:
            assert entry is None
            return self._waits.message(key, name, dedupe_id, timeout)

        return await self.perform(called, Kind.SIGNAL, body)

    def message(
        self, key: str, name: str, dedupe_id: str | None, timeout: timedelta | None
    ) -> Awaitable[JournalEntry]:
        """Wait for a message within the body of another call, under a key of that call's own.

        What is recorded under the key is returned at once.
        """
        recorded = self._journal.get(key)
        if recorded is not None:
            return _at_once(recorded)
        return self._waits.message(key, name, dedupe_id, timeout)

    async def patched(self, name: object) -> bool:
        """Whether an operation takes changed code; see `DurableContext.patched`."""
        if not isinstance(name, str) or not name or "#" in name or "/" in name:
            raise StepArgumentsInvalid(
                f"ctx.patched takes a name without '#' and '/', not {name!r}"
            )
        self._presence.check()
        self._presence.calls += 1
        scope = self._scopes.current()
        # Counted apart: what is patched in must not change the keys of the calls around it.
        number = scope.patches.get(name, 0) + 1
        scope.patches[name] = number
        key = f"{scope.path}patch:{name}#{number}"
        decided = self._scopes.is_patched(scope, key)
        if decided is False:
            return False

        async def body(key: str, entry: JournalEntry | None) -> JournalEntry:
            assert entry is None
            await self._presence.may_begin()
            entry = self.recorder.entry(key, Kind.PATCH)
            await self.recorder.append(entry)
            return entry

        await self._make(scope, key, Kind.PATCH, body, None, False, decided is True)
        return True

    async def gather(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """Run branches to their ends; see `DurableContext.gather`."""
        parent = self.scope()
        presence = self._presence
        task = asyncio.current_task()
        assert task is not None
        branches = [self._begin_branch(parent, awaitable) for awaitable in awaitables]
        presence.gathering[task] = branches
        cancelled: asyncio.CancelledError | None = None
        try:
            while not all(branch.done() for branch in branches):
                try:
                    await asyncio.wait(branches)
                except asyncio.CancelledError as cancellation:
                    cancelled = cancellation
                    for branch in branches:
                        branch.cancel()
        finally:
            del presence.gathering[task]
        if presence.left:
            for branch in branches:
                if not branch.cancelled():
                    branch.exception()  # seen
            raise LeftMemory if self.diverged is None else self.diverged
        errors = [_error_of(branch) for branch in branches]
        if cancelled is not None:
            raise cancelled
        for error in errors:
            if error is not None:
                raise error
        return [branch.result() for branch in branches]

    def _begin_branch(self, parent: Scope, awaitable: Awaitable[Any]) -> "asyncio.Task[Any]":
        scope = self._scopes.branch(parent)
        task = self._presence.loop.create_task(_awaiting(awaitable), context=in_scope(scope))
        scope.task = task
        self._scopes.branches.add(task)
        return task


async def _at_once(entry: JournalEntry) -> JournalEntry:
    return entry


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _error_of(branch: "asyncio.Task[Any]") -> BaseException | None:
    try:
        return branch.exception()
    except asyncio.CancelledError as error:
        return error
