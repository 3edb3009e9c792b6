"""The gateway is killed under load, again and again: nothing is lost, doubled or done twice."""

import asyncio
import logging
import os
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from nexusrpc import OperationError

from clients import NexusClient
from tests.chaos.conftest import Crashing
from tests.chaos.services import SERVICE, Effect, Job, effects_of
from tests.support.callback_receiver import CallbackReceiver, Received
from tests.support.eventually import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

logger = logging.getLogger(__name__)

# When the kills come, and what the clients do; another seed is another story.
SEED = int(os.environ.get("CHAOS_SEED", "20251010"))
OPERATIONS = 300
CLIENTS = 32
KILLS = 5
ENDS = [("succeeded", 0.8), ("failed", 0.1), ("canceled", 0.1)]  # and how often each
ENDS_WITHIN_SECONDS = 60.0


@dataclass
class Call:
    """One operation as its caller sees it."""

    job: Job
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str | None = None  # of the first 201
    answers: list[tuple[str, Any]] = field(default_factory=list)  # ends that were answered inline
    callbacks: set[str] = field(default_factory=set)  # the tokens of the callbacks asked for


class Load:
    """Clients that start operations, repeat some of the starts and cancel some operations."""

    def __init__(self, crashing: Crashing, receiver: CallbackReceiver, chance: random.Random):
        self.calls = [
            Call(crashing.job(f"op-{n}").model_copy(update={"ends": ends}))
            for n, ends in enumerate(chance.choices(*zip(*ENDS, strict=True), k=OPERATIONS))
        ]
        self.accepted = 0
        self._receiver = receiver
        self._chance = chance
        self._left = iter(self.calls)
        self._progress = asyncio.Condition()

    async def run(self, nexus: NexusClient) -> None:
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(nexus))

    async def accepts(self, count: int) -> None:
        """Wait until so many operations were accepted."""
        async with asyncio.timeout(ENDS_WITHIN_SECONDS), self._progress:
            await self._progress.wait_for(lambda: self.accepted >= count)

    async def _client(self, nexus: NexusClient) -> None:
        for call in self._left:
            await self._start(nexus, call, "first")
            async with self._progress:
                self.accepted += 1
                self._progress.notify_all()
            action = self._chance.random()
            if action < 0.3:
                await self._start(nexus, call, "first")  # the answer was lost on the way
            elif action < 0.4:
                await self._start(nexus, call, "second")  # as Temporal does: a new callback token
            if call.job.ends == "canceled":
                assert call.token is not None
                await nexus.handle(SERVICE, "three_steps", call.token).cancel()

    async def _start(self, nexus: NexusClient, call: Call, callback_token: str) -> None:
        call.callbacks.add(callback_token)
        try:
            handle = await nexus.start(
                (SERVICE, "three_steps"),
                call.job,
                request_id=call.request_id,
                callback=self._receiver.url(f"/{call.job.key}"),
                callback_headers={"token": callback_token},
            )
        except OperationError as ended:
            call.answers.append((ended.state.value, None))
            return
        if handle.token is None:
            call.answers.append(("succeeded", await handle.result()))
            return
        assert call.token in (None, handle.token), "a repeated start was given another token"
        call.token = handle.token


async def test_nothing_is_lost_or_doubled(crashing: Crashing, receiver: CallbackReceiver) -> None:
    chance = random.Random(SEED)
    load = Load(crashing, receiver, chance)
    # Moments by progress and not by time, so that every kill falls into the load.
    moments = sorted(chance.sample(range(OPERATIONS // 20, OPERATIONS * 9 // 10), KILLS))
    async with asyncio.TaskGroup() as running:
        running.create_task(load.run(crashing.nexus))
        for moment in moments:
            await load.accepts(moment)
            await asyncio.sleep(chance.uniform(0, 0.03))  # anywhere in the steps that run now
            await crashing.restart()

    operations = await all_ended(crashing)
    assert len(operations) == OPERATIONS  # one for each request id, however often it was sent
    await eventually(lambda: all_called_back(load, receiver), timeout_seconds=ENDS_WITHIN_SECONDS)

    received = by_key(receiver)
    repeated = 0
    for call in load.calls:
        operation = await crashing.show(token_of(call, received))
        told = received[call.job.key]
        assert_one_end(call, operation, told)
        repeated += assert_recorded_steps_ran_last(operation, effects_of(call.job))
    duplicates = len(receiver.requests) - sum(len(call.callbacks) for call in load.calls)
    logger.info(
        "steps that ran again, unrecorded: %d; callbacks repeated: %d", repeated, duplicates
    )


async def all_ended(crashing: Crashing) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]] | None:
        operations = await crashing.list()
        return operations if all(o["closed_at"] is not None for o in operations) else None

    return await eventually(ask, timeout_seconds=ENDS_WITHIN_SECONDS)


async def all_called_back(load: Load, receiver: CallbackReceiver) -> bool | None:
    arrived = {(request.path[1:], request.get("token")) for request in receiver.requests}
    wanted = {(call.job.key, token) for call in load.calls for token in call.callbacks}
    assert arrived <= wanted, "a callback that nobody asked for"
    return True if arrived == wanted else None


def by_key(receiver: CallbackReceiver) -> dict[str, list[Received]]:
    received: dict[str, list[Received]] = {}
    for request in receiver.requests:
        received.setdefault(request.path[1:], []).append(request)
    return received


def token_of(call: Call, received: dict[str, list[Received]]) -> str:
    told = received[call.job.key][0].get("nexus-operation-token")
    assert told is not None
    assert call.token in (None, told)
    return told


def assert_one_end(call: Call, operation: dict[str, Any], told: list[Received]) -> None:
    """Whoever was told of the end, in whatever way, was told the same."""
    state = operation["state"]
    assert state == call.job.ends
    assert operation["request_id"] == call.request_id
    assert len(operation["deliveries"]) == len(call.callbacks)
    assert {request.get("nexus-operation-state") for request in told} == {state}
    assert len({request.body for request in told}) == 1
    assert len({request.get("nexus-operation-close-time") for request in told}) == 1
    for answered_state, result in call.answers:
        assert answered_state == state
        if state == "succeeded":
            assert result == told[0].json()
    if state == "succeeded":
        recorded = [step["output"]["nonce"] for step in operation["steps"] if step["output"]]
        assert told[0].json() == recorded
    else:
        message = {"failed": "told to fail", "canceled": "operation canceled"}[state]
        assert told[0].json()["message"] == message


def assert_recorded_steps_ran_last(operation: dict[str, Any], effects: list[Effect]) -> int:
    """What the journal has of a step is its last run; return how many runs were repetitions."""
    last_run = {effect.step: effect.nonce for effect in effects}
    runs = Counter(effect.step for effect in effects)
    for step in operation["steps"]:
        if step["output"] is not None:
            recorded = Effect(**step["output"])
            assert last_run[recorded.step] == recorded.nonce, "a recorded step ran again"
    assert max(runs.values(), default=0) <= KILLS + 1
    return sum(runs.values()) - len(runs)
