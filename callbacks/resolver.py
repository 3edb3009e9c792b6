"""Host names to addresses: the system's resolver, kept from being held up by a few dead names."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["Resolver", "ResolverOfAiohttp", "SystemResolver"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up a host and port: every address, as text. Raises OSError where there is none."""

# A look-up may hang for half a minute. Threads of its own keep a dead name server away from
# everything else that runs on threads, and there are many of them since they do nothing but wait.
_THREADS = 64


class SystemResolver:
    """`getaddrinfo` on threads that serve nothing else, one at the most for each name.

    A thread cannot be interrupted: whoever asks again for a name that hangs waits for the look-up
    that is under way, and one that nobody waits for any more is not begun. Bound to one event loop.

    Args:
        get_addresses: the look-up itself, run on a thread.
    """

    def __init__(self, get_addresses: Callable[[str, int], list[str]] | None = None) -> None:
        self._get_addresses = get_addresses or _addresses
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="callback-dns")
        self._under_way: dict[tuple[str, int], _LookUp] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return every address of the host.

        Raises:
            OSError: it has none, or the look-up failed.
        """
        key = host, port
        look_up = self._under_way.get(key)
        if look_up is None:
            look_up = self._begin(key)
        look_up.waiting += 1
        try:
            return await asyncio.shield(look_up.answer)
        except asyncio.CancelledError:
            # `close` cancels what has not begun; that is no cancellation of whoever waits for it.
            if look_up.job.cancelled() and not _is_cancelled():
                raise OSError("the resolver is closed") from None
            raise
        finally:
            look_up.waiting -= 1
            if not look_up.waiting and look_up.job.cancel():
                self._under_way.pop(key, None)

    def close(self) -> None:
        """Begin no further look-up; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, key: tuple[str, int]) -> "_LookUp":
        look_up = _LookUp(self._threads.submit(self._get_addresses, *key))
        self._under_way[key] = look_up

        def forget(answer: asyncio.Future[list[str]]) -> None:
            if self._under_way.get(key) is look_up:
                del self._under_way[key]
            if not answer.cancelled():
                answer.exception()  # nobody may have waited to the end

        look_up.answer.add_done_callback(forget)
        return look_up


class ResolverOfAiohttp(AbstractResolver):
    """A resolver in the form in which aiohttp wants one."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return what the resolver says."""
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in await self._resolver(host, port)
        ]

    async def close(self) -> None:
        """Do nothing: the resolver belongs to whoever made it."""


class _LookUp:
    """One name on its way through the resolver."""

    __slots__ = ("answer", "job", "waiting")

    def __init__(self, job: Future[list[str]]) -> None:
        self.job = job
        self.answer = asyncio.wrap_future(job)
        self.waiting = 0


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host} is not a host name") from error
    return [str(address[0]) for *_, address in found]
