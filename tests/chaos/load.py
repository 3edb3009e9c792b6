"""Clients that start operations at any replica, and ask again until they are answered."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.workload import SERVICE, SIGNAL
from tests.support.callback_receiver import CallbackReceiver

KINDS = {
    "plain": 0.44,
    "sleeping": 0.12,
    "signalled": 0.14,
    "gathering": 0.14,
    "failing": 0.08,
    "canceled": 0.08,
}
"""The operations, and how often each."""

_ENDS = {"failing": "failed", "canceled": "canceled"}
_ANSWER_SECONDS = 6.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_CONNECTIONS = 300


@dataclass
class Call:
    """One operation as its client sees it."""

    number: int
    kind: str
    request_id: str
    token: str | None = None
    answered: bool = False
    asked: int = 0  # requests that were sent for it
    results: list[tuple[int, bytes]] = field(default_factory=list)  # answers with the end
    refusals: list[str] = field(default_factory=list)  # answers that should not be

    @property
    def ends(self) -> str:
        """The state that the operation has to end in."""
        return _ENDS.get(self.kind, "succeeded")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class Load:
    """A number of operations, begun at a steady rate.

    Args:
        base_urls: Where the replicas are.
        receiver: Where the completions go.
        chance: Decides what is started, where, and what is asked twice.
        count: How many operations.
        seconds: How long it takes to begin them all.
        kinds: What is started, and how often each.
        step_seconds: How long a step takes.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        receiver: CallbackReceiver,
        chance: random.Random,
        *,
        count: int,
        seconds: float,
        kinds: dict[str, float] | None = None,
        step_seconds: float = 0.005,
    ) -> None:
        kinds = kinds or KINDS
        chosen = chance.choices(list(kinds), list(kinds.values()), k=count)
        self.calls = [Call(n, kind, f"r{n}") for n, kind in enumerate(chosen)]
        self._urls = base_urls
        self._receiver = receiver
        self._chance = chance
        self._seconds = seconds
        self._step_seconds = step_seconds
        self._http: aiohttp.ClientSession

    async def run(self) -> None:
        """Begin all operations and return when each is answered, and told what it waits for."""
        began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
        # A client of httpx would take more of the machine than what it asks.
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as self._http,
            asyncio.TaskGroup() as clients,
        ):
            for call in self.calls:
                due = began + call.number / len(self.calls) * self._seconds
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                clients.create_task(self._client(call))

    async def _client(self, call: Call) -> None:
        await self._start(call)
        if call.token is not None and call.kind == "signalled":
            await self._ask(
                call,
                f"/api/v1/operations/{call.token}/signals/{SIGNAL}",
                {"Idempotency-Key": call.request_id, "Content-Type": "application/json"},
                json=call.number,
            )
        if call.token is not None and call.kind == "canceled":
            await asyncio.sleep(self._chance.uniform(0, 0.2))
            await self._ask(
                call,
                f"/services/{SERVICE}/{call.kind}/cancel",
                {"Nexus-Operation-Token": call.token},
            )
        if self._chance.random() < 0.1:
            await self._start(call)  # the answer was lost on the way

    async def _start(self, call: Call) -> None:
        headers = {"Nexus-Request-Id": call.request_id, "Content-Type": "application/json"}
        if self._chance.random() < 0.15:
            headers["Prefer"] = "wait=2"
        answer = await self._ask(
            call,
            f"/services/{SERVICE}/{call.kind}",
            headers,
            params={"callback": self._receiver.url(f"/{call.request_id}")},
            json={"number": call.number, "step_seconds": self._step_seconds},
        )
        call.answered = True
        if answer.status != 201:
            call.results.append((answer.status, answer.body))
            return
        token = json.loads(answer.body)["token"]
        if call.token not in (None, token):
            call.refusals.append(f"a repeated start was answered {token} after {call.token}")
        call.token = token

    async def _ask(self, call: Call, path: str, headers: dict[str, str], **more: Any) -> _Answer:
        """Ask one replica after the other until there is an answer."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            call.asked += 1
            url = self._chance.choice(self._urls)
            try:
                async with self._http.post(url + path, headers=headers, **more) as response:
                    answer = _Answer(response.status, await response.read())
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                if answer.status in {200, 201, 202, 204, 424}:
                    return answer
                if answer.status < 500 and answer.status not in {408, 429}:
                    call.refusals.append(f"{path}: {answer.status} {answer.body!r}")
                    return answer
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
