"""Policies, digests and what is written of results."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import pytest
from nexusrpc import HandlerError, HandlerErrorType
from pydantic import BaseModel

from handlers import RetryPolicy, StepArgumentsInvalid
from handlers.journal import Journal
from handlers.tokens import new_token
from handlers.values import decode, encode, hash_arguments, result_type


class Tagged(BaseModel):
    tags: set[str]
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Pair:
    left: frozenset[str]
    right: bytes


ARGUMENTS = (
    Tagged(tags={"a", "b", "c", "d"}),
    Pair(frozenset("wxyz"), b"\xff"),
    {"b": 1, "a": {UUID(int=1): {"n", "o"} and 2}},
)


def test_a_digest_is_the_same_in_every_process() -> None:
    script = (
        "from tests.handlers.test_values import ARGUMENTS\n"
        "from handlers.values import hash_arguments\n"
        "print(hash_arguments(ARGUMENTS).hex())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(p for p in sys.path if p)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert digests == {hash_arguments(ARGUMENTS).hex()}


def test_other_arguments_have_another_digest() -> None:
    arguments: list[tuple[Any, ...]] = [
        (), (1,), ("1",), (None,), (1, 2), ([1, 2],), ({"a": 1},), ({1, 2},), (b"\xff",), (b"",),
        (Tagged(tags=set()),), (Tagged(tags={"x"}),), ({datetime(2026, 1, 1, tzinfo=UTC): 1},),
    ]  # fmt: skip
    assert len({hash_arguments(args) for args in arguments}) == len(arguments)
    assert hash_arguments(({"a": 1, "b": 2},)) == hash_arguments(({"b": 2, "a": 1},))


def test_what_json_cannot_hold_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (object(), endless, iter([1]), {object(): 1}):
        with pytest.raises(StepArgumentsInvalid):
            hash_arguments((value,))
    for value in (object(), endless, b"\xff", [b"\xff"]):
        with pytest.raises(StepArgumentsInvalid):
            encode(value)


def test_results_are_read_as_their_type() -> None:
    assert decode(encode(b"\x00\xff", bytes), bytes) == b"\x00\xff"
    assert decode(encode(None), type(None)) is None
    assert decode(encode({"tags": ["a"]}), Tagged) == Tagged(tags={"a"})
    unhashable = Annotated[int, ["no key of a cache"]]
    assert decode(encode(3), unhashable) == 3
    with pytest.raises(ValueError, match="int"):
        decode(encode("x"), int)


def test_result_types() -> None:
    class Slotted:
        __slots__ = ()

        def __call__(self) -> int:
            return 1

    async def unresolved() -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        ...

    def typed() -> dict[str, int]:
        return {}

    assert result_type(typed) == result_type(typed) == dict[str, int]
    assert result_type(unresolved) is Any
    assert result_type(Slotted()) is Any
    assert result_type(len) is Any


def test_a_policy_says_what_is_wrong_with_it() -> None:
    for arguments in (
        {"max_attempts": 0},
        {"backoff": 0.5},
        {"initial_interval": timedelta(seconds=-1)},
        {"max_interval": timedelta(seconds=-1)},
    ):
        with pytest.raises(ValueError, match="must"):
            RetryPolicy(**arguments)


def test_a_policys_waits_and_verdicts() -> None:
    policy = RetryPolicy(max_attempts=5000)
    assert [policy.wait_seconds(n) for n in (1, 2, 6, 7, 4999)] == [1, 2, 32, 60, 60]
    assert policy.retries(ValueError(), 4999)
    assert not policy.retries(ValueError(), 5000)
    assert policy.retries(HandlerError("", type=HandlerErrorType.UNAVAILABLE), 1)
    assert not policy.retries(HandlerError("", type=HandlerErrorType.BAD_REQUEST), 1)


def test_tokens_sort_by_time_and_differ() -> None:
    tokens = [new_token() for _ in range(100)]
    assert len(set(tokens)) == 100
    assert sorted(token[:9] for token in tokens) == [token[:9] for token in tokens]
    assert all(token.isalnum() and token == token.lower() for token in tokens)


def test_an_empty_journal() -> None:
    assert len(Journal()) == 0
    assert Journal().interrupt() is None
    assert Journal().next_ordinal() == 1
