"""Many writes in one PostgreSQL transaction, each statement sent once for all that run it.

The coroutines of the writes advance side by side: each runs until it awaits its transaction, what
they then ask for is grouped by statement, a group is sent as one, and the answers are handed
back. A batch of a hundred writes takes as many round trips as its longest write has statements.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from callbacks.database.notifications import message
from callbacks.database.postgres_sql import Answers, Batched
from callbacks.database.statements import Row, Statement, Write

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic in its stubs only


class WriteFailed(Exception):
    """A write raised an error of its own, when it had changed something already."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(str(error))
        self.number = number  # which of the writes, from 0
        self.error = error


class _Request:
    """A statement that a write waits for."""

    __slots__ = ("counted", "params", "statement")

    def __init__(self, statement: Statement, params: Mapping[str, Any], *, counted: bool) -> None:
        self.statement = statement
        self.params = params
        self.counted = counted  # the write wants to know how many rows, not which

    def __await__(self) -> Generator["_Request", Any, Any]:
        return (yield self)


class _Progress:
    """One write on its way: the transaction it is given, and what it waits for."""

    def __init__(self, number: int, write: Write[Any]) -> None:
        self.number = number
        self.answer: Any = None
        self.notifications: list[str] = []
        self.request: _Request | None = None
        self.reply: Any = None
        self._changed = False
        self._coroutine = write.apply(self)

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        count: int = await _Request(statement, params, counted=True)
        return count

    async def fetch(self, statement: Statement, params: Mapping[str, Any]) -> Sequence[Row]:
        rows: Sequence[Row] = await _Request(statement, params, counted=False)
        return rows

    async def notify(self, channel: str, payload: str) -> None:
        self.notifications.append(message(channel, payload))

    def advance(self) -> None:
        """Run until the next request, or to the end.

        Raises:
            WriteFailed: The write failed and has to be taken back.
        """
        reply, self.reply, self.request = self.reply, None, None
        try:
            request = self._coroutine.send(reply)
        except StopIteration as done:
            self.answer = done.value
            return
        except Exception as error:
            if self._changed:
                raise WriteFailed(self.number, error) from error
            # It has only read so far: the others need not be taken back for it.
            self.answer = error
            self.notifications.clear()
            return
        if not isinstance(request, _Request):
            raise WriteFailed(
                self.number, RuntimeError("a write awaits nothing but its transaction")
            )
        self.request = request
        self._changed = self._changed or request.statement.postgres.changes

    def close(self) -> None:
        self._coroutine.close()


async def apply_together(
    connection: Connection, writes: Sequence[Write[Any]]
) -> tuple[list[Any], list[str]]:
    """Apply writes side by side in the transaction that is open on a connection.

    Returns:
        The answer of each write, an exception where it failed by itself without having changed
        anything; and the messages that they notify, each once.

    Raises:
        WriteFailed: One of them failed by itself; the transaction has to be taken back.
        asyncpg.PostgresError: A statement failed, likewise.
    """
    under_way = [_Progress(number, write) for number, write in enumerate(writes)]
    try:
        for each in under_way:
            each.advance()
        while waiting := [each for each in under_way if each.request is not None]:
            groups: dict[Statement, list[_Progress]] = {}
            waiting = _whose_turn_it_is(waiting)
            for each in waiting:
                assert each.request is not None
                groups.setdefault(each.request.statement, []).append(each)
            # What is added first: a group runs at the place of its first member, and another
            # write's end would come before what was queued ahead of the end of the same thing.
            ordered = sorted(groups.items(), key=lambda group: not group[0].postgres.adds)
            for statement, members in ordered:
                await _run(connection, statement, members)
            for each in waiting:
                each.advance()
    finally:
        for each in under_way:
            each.close()
    messages = dict.fromkeys(told for each in under_way for told in each.notifications)
    return [each.answer for each in under_way], list(messages)


def _whose_turn_it_is(waiting: list[_Progress]) -> list[_Progress]:
    first = [each for each in waiting if each.request and not each.request.statement.last]
    return first or waiting


async def run_single(
    connection: Connection, statement: Statement, params: Mapping[str, Any]
) -> list[Row]:
    """Run a statement for one set of parameters and return its rows."""
    single = statement.postgres.single
    rows = await connection.fetch(single.sql, *[params[name] for name in single.names])
    return [tuple(row) for row in rows]


async def _run(connection: Connection, statement: Statement, members: list[_Progress]) -> None:
    if statement.last and len(members) > 1:
        names = statement.postgres.single.names
        members = sorted(members, key=lambda each: _sortable(each, names))
    if statement.idempotent and len(members) > 1:
        alike: dict[tuple[Any, ...], list[_Progress]] = {}
        for each in members:
            assert each.request is not None
            params = tuple(each.request.params[name] for name in statement.postgres.single.names)
            alike.setdefault(params, []).append(each)
        await _run_each(connection, statement, [same[0] for same in alike.values()])
        for first, *others in alike.values():
            for each in others:
                each.reply = first.reply
    else:
        await _run_each(connection, statement, members)


async def _run_each(connection: Connection, statement: Statement, members: list[_Progress]) -> None:
    batched = statement.postgres.batched
    if batched is None or len(members) == 1:
        for each in members:
            await _run_alone(connection, statement, each)
        return
    for run in _runs(batched, members):
        await _run_batched(connection, batched, run)


async def _run_alone(connection: Connection, statement: Statement, member: _Progress) -> None:
    request = member.request
    assert request is not None
    if not request.counted:
        member.reply = await run_single(connection, statement, request.params)
        return
    single = statement.postgres.single
    status = await connection.execute(single.sql, *[request.params[name] for name in single.names])
    member.reply = int(status.rpartition(" ")[2])


def _runs(batched: Batched, members: list[_Progress]) -> Iterable[list[_Progress]]:
    """Return who may share one run of a batched statement, sorted so that locks are ordered."""
    if batched.sorted_by:
        members = sorted(members, key=lambda each: _sortable(each, batched.sorted_by))
    if not batched.apart_by:
        return [members]
    runs: list[list[_Progress]] = []
    times: dict[tuple[Any, ...], int] = {}
    for each in members:
        assert each.request is not None
        key = tuple(each.request.params[name] for name in batched.apart_by)
        time = times.get(key, 0)
        times[key] = time + 1
        if time == len(runs):
            runs.append([])
        runs[time].append(each)
    return runs


def _sortable(member: _Progress, names: Sequence[str]) -> list[tuple[bool, Any]]:
    assert member.request is not None
    values = [member.request.params[name] for name in names]
    return [(value is not None, value) for value in values]


async def _run_batched(
    connection: Connection, batched: Batched, members: Sequence[_Progress]
) -> None:
    sets = [each.request.params for each in members if each.request is not None]
    arrays = [[params[name] for params in sets] for name in batched.names]
    if not batched.returns_rows:
        await connection.execute(batched.sql, *arrays)
        answers: list[list[Row]] = [[()]] * len(members)
    else:
        answers = _sorted_out(batched, sets, await connection.fetch(batched.sql, *arrays))
    for each, rows in zip(members, answers, strict=True):
        assert each.request is not None
        each.reply = len(rows) if each.request.counted else rows


def _sorted_out(
    batched: Batched, sets: Sequence[Mapping[str, Any]], rows: Sequence[asyncpg.Record]
) -> list[list[Row]]:
    """Return the rows that belong to each set of parameters."""
    match batched.answers:
        case Answers.BY_POSITION:
            return [[tuple(row)] for row in rows]
        case Answers.BY_ORDINAL:
            answers: list[list[Row]] = [[] for _ in sets]
            for row in rows:
                answers[row[-1] - 1].append(tuple(row)[:-1])
            return answers
        case Answers.BY_KEY:
            width = len(batched.key)
            by_key = {tuple(row)[-width:]: tuple(row)[:-width] for row in rows}
            # Of several with one key the first was inserted.
            keys = [tuple(params[name] for name in batched.key) for params in sets]
            found = [by_key.pop(key, None) for key in keys]
            return [[] if row is None else [row] for row in found]
