"""Looking again and again, for as long as a process is alive."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from callbacks.database import DatabaseClosed
from callbacks.leases import Lease

logger = logging.getLogger(__name__)


async def make_rounds(
    look: Callable[[], Awaitable[None]],
    *,
    lease: Lease,
    wait_seconds: Callable[[], float],
    what: str,
) -> None:
    """Look now and then until the database closes; a look that fails is followed by the next.

    Args:
        look: Looks once.
        lease: Of this process: nobody looks unless it holds.
        wait_seconds: How long to wait before each look.
        what: What is looked for, for the log.
    """
    while True:
        await asyncio.sleep(wait_seconds())
        await lease.held()
        try:
            await look()
        except DatabaseClosed:
            return
        except Exception:
            logger.exception("cannot look for %s", what)
