"""Rows of the tables: one exchange (`Clause`), or a small scenario (`Scenario`)."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tests.conformance.world import World
from tests.support.raw_http import RawResponse

BodyCheck: TypeAlias = Callable[[bytes], None]
# A header's value: exactly this text, a pattern for all of it, or None where it must be absent.
Expected: TypeAlias = "str | re.Pattern[str] | None"


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One request, sent as the bytes given, and what must come back.

    A `{receiver}` in the request is replaced by the escaped URL of a callback receiver.
    """

    id: str
    says: str
    request: bytes
    status: int
    headers: Mapping[str, Expected] = field(default_factory=dict)
    body: bytes | BodyCheck | None = None

    async def check(self, world: World) -> None:
        answer = await world.exchange(self.request)
        assert answer.status == self.status, (answer.status, answer.body)
        expect_headers(answer, self.headers)
        if isinstance(self.body, bytes):
            assert answer.body == self.body
        elif self.body is not None:
            assert answer.get("content-type") == "application/json"
            self.body(answer.body)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Several exchanges that show one clause together."""

    id: str
    says: str
    check: Callable[[World], Awaitable[None]]


Row: TypeAlias = Clause | Scenario
Table: TypeAlias = list[Row]
Check: TypeAlias = Callable[[World], Awaitable[None]]


def scenario(table: Table, id: str, says: str) -> Callable[[Check], Check]:
    """Add a scenario to a table."""

    def add(check: Check) -> Check:
        table.append(Scenario(id=id, says=says, check=check))
        return check

    return add


def row_id(row: Row) -> str:
    """Name a row in the report."""
    return row.id


def expect_headers(answer: RawResponse, expected: Mapping[str, Expected]) -> None:
    """Check headers of an answer."""
    for name, value in expected.items():
        found = answer.get_all(name)
        if value is None:
            assert found == [], f"{name} must be absent: {found}"
        elif isinstance(value, str):
            assert found == [value], f"{name}: {found}"
        else:
            assert len(found) == 1, f"{name}: {found}"
            assert value.fullmatch(found[0]), f"{name}: {found}"


def failure(
    type: str, *parts: str, retryable: bool | None = None, hidden: Sequence[str] = ()
) -> BodyCheck:
    """Check for a typed HandlerError Failure whose message has these parts."""

    def check(body: bytes) -> None:
        found = json.loads(body)
        assert found["metadata"] == {"type": "nexus.HandlerError"}
        details = {"type": type}
        if retryable is not None:
            details["retryableOverride"] = retryable  # type: ignore[assignment]
        assert found["details"] == details
        assert found["message"], "a message says what is wrong"
        for part in parts:
            assert part in found["message"], found["message"]
        for secret in hidden:
            assert secret.encode() not in body

    return check


def operation_error(state: str, message: str, cause: str | None = None) -> BodyCheck:
    """Check for a typed OperationError Failure."""

    def check(body: bytes) -> None:
        found = json.loads(body)
        assert found["metadata"]["type"] == "nexus.OperationError"
        assert found["details"]["state"] == state
        assert found["message"] == message
        assert found.get("cause", {}).get("message") == cause

    return check


def json_value(value: Any) -> BodyCheck:
    """Check for this JSON value."""

    def check(body: bytes) -> None:
        assert json.loads(body) == value

    return check


def json_has(**expected: Any) -> BodyCheck:
    """Check for a JSON object that has these members among others."""

    def check(body: bytes) -> None:
        found = json.loads(body)
        assert {name: found.get(name) for name in expected} == expected

    return check
