"""Notices that something goes on."""

import asyncio


class Pulse:
    """Counts what happens, so that it shows when nothing does."""

    def __init__(self) -> None:
        self.beats = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def beat(self) -> None:
        """Something has happened."""
        self.beats += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def next(self, seconds: float) -> bool:
        """Wait in real time until something happens; return False where nothing does."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait([waiting], timeout=seconds)
        finally:
            self._waiting.discard(waiting)
        return waiting.done()
