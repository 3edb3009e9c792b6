"""A destination that is down, and what tests ask of it."""

from typing import Any

from callbacks.breaker import Breaker
from clients.errors import Unreachable
from tests.callbacks.conftest import OpenOffice
from tests.callbacks.office import Office, Sender
from tests.support.eventually import eventually

DOWN = Unreachable("refused")
DEAD = "dead.example"
MINUTE_MS = 60_000


async def has_standing(office: Office, **expected: Any) -> Breaker:
    """Wait until the dead destination's breaker is so in the database and in memory."""

    async def ask() -> Breaker | None:
        standing = await office.standing(DEAD)
        found = {name: getattr(standing.breaker, name) for name in expected}
        known = office.service.holds.holds(standing.name) == standing.holds(office.now())
        return standing.breaker if found == expected and known else None

    return await eventually(ask)


async def dead_office(open_office: OpenOffice, **options: Any) -> Office:
    """Open an office whose dead destination has just failed five times."""
    office = await open_office(sender=Sender(of_host={DEAD: DOWN}), **options)
    for n in range(5):
        await office.end(f"first{n}", DEAD)
    await has_standing(office, is_open=True, openings=1)
    for n in range(5):
        await office.is_(f"first{n}", "due", 1)
    return office


async def go_on_at(office: Office, at: int | None) -> None:
    assert at is not None
    office.time = at
    office.service.wake()


def attempts(office: Office, host: str = DEAD) -> int:
    return sum(url.startswith(f"http://{host}/") for url, _, _ in office.sender.posts)
