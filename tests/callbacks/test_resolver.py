import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest

from callbacks.resolver import SystemResolver

pytestmark = pytest.mark.anyio


class NameServer:
    """Answers a name when it is told to; every look-up occupies a thread until then."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released: dict[str, threading.Event] = {}
        self.begun = threading.Semaphore(0)

    def hang(self, host: str) -> threading.Event:
        self.released[host] = threading.Event()
        return self.released[host]

    def get_addresses(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        self.begun.release()
        if host in self.released:
            assert self.released[host].wait(20)
        if host.startswith("gone"):
            raise OSError(f"no such host: {host}")
        return ["192.0.2.1", f"192.0.2.{port}"]

    async def until_asked(self, times: int) -> None:
        for _ in range(times):
            await asyncio.to_thread(self.begun.acquire)


@pytest.fixture
def server() -> NameServer:
    return NameServer()


@pytest.fixture
async def resolver(server: NameServer) -> AsyncIterator[SystemResolver]:
    resolver = SystemResolver(server.get_addresses)
    with ExitStack() as stack:
        stack.callback(resolver.close)
        yield resolver
        for released in server.released.values():
            released.set()


async def test_every_address_is_returned(resolver: SystemResolver) -> None:
    assert await resolver("a.example", 80) == ["192.0.2.1", "192.0.2.80"]


async def test_the_systems_own_look_up_knows_this_machine() -> None:
    resolver = SystemResolver()
    assert set(await resolver("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match="not a host name"):
        await resolver("a" * 64 + ".example", 80)
    resolver.close()


async def test_a_failure_is_an_os_error_for_everybody_who_waits(
    resolver: SystemResolver, server: NameServer
) -> None:
    released = server.hang("gone.example")
    waiting = [asyncio.ensure_future(resolver("gone.example", 80)) for _ in range(3)]
    await server.until_asked(1)
    released.set()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, OSError)
    assert server.asked == ["gone.example"]


async def test_a_name_that_hangs_takes_one_thread_however_often_it_is_asked_for(
    resolver: SystemResolver, server: NameServer
) -> None:
    released = server.hang("dead.example")
    for _ in range(200):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await resolver("dead.example", 80)
    waiting = [asyncio.ensure_future(resolver("dead.example", 80)) for _ in range(200)]
    await server.until_asked(1)
    assert await resolver("alive.example", 80)
    assert server.asked == ["dead.example", "alive.example"]
    released.set()
    assert len(await asyncio.gather(*waiting)) == 200
    # What was answered is not kept: a name is looked up at every dial.
    assert await resolver("dead.example", 80)
    assert server.asked.count("dead.example") == 2


async def test_a_look_up_that_nobody_waits_for_any_more_is_not_begun(
    resolver: SystemResolver, server: NameServer
) -> None:
    threads = 64
    for n in range(threads):
        server.hang(f"dead{n}.example")
    dead = [asyncio.ensure_future(resolver(f"dead{n}.example", 80)) for n in range(threads)]
    await server.until_asked(threads)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await resolver("late.example", 80)
    later = asyncio.ensure_future(resolver("later.example", 80))
    server.released["dead0.example"].set()
    assert await later
    assert "late.example" not in server.asked
    for task in dead:
        task.cancel()


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_closing_is_an_os_error_and_cancelling_is_a_cancel(
    resolver: SystemResolver, server: NameServer, end: str
) -> None:
    threads = 64
    for n in range(threads):
        server.hang(f"dead{n}.example")
    dead = [asyncio.ensure_future(resolver(f"dead{n}.example", 80)) for n in range(threads)]
    await server.until_asked(threads)
    queued = asyncio.ensure_future(resolver("queued.example", 80))
    await asyncio.sleep(0)
    ends: dict[str, Callable[[], object]] = {"close": resolver.close, "cancel": queued.cancel}
    ends[end]()
    with pytest.raises(OSError if end == "close" else asyncio.CancelledError):
        await queued
    for task in dead:
        task.cancel()
