"""Any statement may fail, and any answer be lost: everything is still done, once."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from nexusrpc import HandlerError, OperationError

from callbacks.database import DatabaseError, open_database
from callbacks.delivery import DeliveryService
from callbacks.egress import EgressPolicy, check_callback_url
from callbacks.leases import Lease
from callbacks.outbox import Registration
from callbacks.sender import AiohttpSender
from gateway.schema import migrate
from handlers.engine import Engine, EngineSettings
from handlers.requests import OperationKey, Started, StartRequest
from handlers.services import ServiceRegistry
from nexus_spec import PayloadSerializer
from tests.chaos.checks import Evidence, violations
from tests.chaos.database import everything, reading, unfinished
from tests.chaos.faulty import FaultyDatabase
from tests.chaos.load import KINDS, Call
from tests.chaos.witness import FOLDER, runs_in
from tests.chaos.workload import SERVICE, SIGNAL, CampaignHandler, Order
from tests.support.callback_receiver import CallbackReceiver
from tests.support.eventually import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

SEED = int(os.environ.get("CHAOS_SEED", "3"))
OPERATIONS = 300
AT_ONCE = 40

_SHOWN = 20

T = TypeVar("T")

_SERIALIZER = PayloadSerializer()
_POLICY = EgressPolicy(allow_private=True)


@dataclass
class Process:
    """One gateway without its HTTP side."""

    database: FaultyDatabase
    lease: Lease
    delivery: DeliveryService
    engine: Engine


@asynccontextmanager
async def process_on(url: str, chance: random.Random) -> AsyncIterator[Process]:
    """Run a process on a database with faults; there are none while it begins and ends."""
    database = FaultyDatabase(await open_database(url), chance, share=0.0)
    lease = Lease(database)
    delivery = DeliveryService(database, AiohttpSender(_POLICY), lease=lease)
    engine = Engine(
        ServiceRegistry({"default": [CampaignHandler()]}),
        database,
        delivery,
        lease=lease,
        settings=EngineSettings(suspend_after_seconds=1.0),
    )
    await lease.open()
    await delivery.open()
    await engine.open()
    database.share = 0.01
    try:
        yield Process(database, lease, delivery, engine)
    finally:
        database.share = 0.0
        await engine.close(5.0)
        await delivery.close(5.0)
        await lease.close()
        await database.aclose()


async def test_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    url = f"sqlite:///{tmp_path / 'faults.db'}"
    await asyncio.to_thread(migrate, url)
    chance = random.Random(SEED)
    async with process_on(url, chance) as one:
        await work_through(url, [one], chance, tmp_path)


async def test_postgresql(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    chance = random.Random(SEED)
    async with process_on(postgres_url, chance) as one, process_on(postgres_url, chance) as other:
        await work_through(postgres_url, [one, other], chance, tmp_path)


async def work_through(
    url: str, processes: list[Process], chance: random.Random, folder: Path
) -> None:
    kinds = chance.choices(list(KINDS), list(KINDS.values()), k=OPERATIONS)
    calls = [Call(n, kind, f"r{n}") for n, kind in enumerate(kinds)]
    left = iter(calls)
    async with CallbackReceiver() as receiver, reading(url) as fetch:

        async def client() -> None:
            for call in left:
                await _ask(call, processes, chance, receiver)

        async with asyncio.TaskGroup() as clients:
            for _ in range(AT_ONCE):
                clients.create_task(client())

        async def nothing_is_left() -> bool | None:
            return True if not await unfinished(fetch) else None

        try:
            await eventually(nothing_is_left, timeout_seconds=45.0)
        except TimeoutError:
            pass  # what is left is told below
        evidence = Evidence(
            calls=calls,
            operations=await everything(fetch),
            runs=runs_in(folder),
            faults=[],
            received=list(receiver.requests),
            shown={},
            logs={},
        )
    faults = sum((process.database.faults for process in processes), start=Counter[str]())
    found = [str(violation) for violation in violations(evidence)]
    assert not found, "\n".join([f"seed {SEED}: {faults}", *found[:_SHOWN]])
    assert sum(faults.values()) > OPERATIONS / 10
    # No process was lost, so no step had any reason to run again.
    assert evidence.repeated == 0


async def _ask(
    call: Call, processes: list[Process], chance: random.Random, receiver: CallbackReceiver
) -> None:
    """Start an operation, and do to it what its kind waits for."""
    url = receiver.url(f"/{call.request_id}")
    content = _SERIALIZER.serialize(Order(number=call.number))
    request = StartRequest(
        key=_key(call),
        request_id=call.request_id,
        body=content.data,
        content_headers=dict(content.headers),
        callback=Registration(url, check_callback_url(url, _POLICY).name, {}),
    )
    for _ in range(2 if chance.random() < 0.2 else 1):
        try:
            answer = await _until_done(lambda: chance.choice(processes).engine.start(request))
        except OperationError:
            continue  # it has ended so already
        finally:
            call.answered = True
        if isinstance(answer, Started):
            assert call.token in (None, answer.token)
            call.token = answer.token
    token = call.token
    if token is None:
        return
    if call.kind == "signalled":
        said = str(call.number).encode()
        await _until_done(
            lambda: chance.choice(processes).engine.signal(token, SIGNAL, said, call.request_id)
        )
    if call.kind == "canceled":
        await _until_done(lambda: chance.choice(processes).engine.cancel(_key(call), token, {}))


async def _until_done(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask as a patient caller does: what the database did not do is a fault that passes."""
    while True:
        try:
            return await ask()
        except DatabaseError:
            pass  # answered as an internal error
        except HandlerError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(0.05)


def _key(call: Call) -> OperationKey:
    return OperationKey(endpoint="default", service=SERVICE, operation=call.kind, caller="")
