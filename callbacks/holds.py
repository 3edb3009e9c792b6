"""What this process knows of destinations that are held, and what it tells the others."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from callbacks.breaker import Breaker, Outcomes
from callbacks.database import Database, DatabaseClosed
from callbacks.delivery_rules import DeliveryRules
from callbacks.destinations import CHANNEL, EndProbe
from callbacks.standings import (
    ALL_STANDINGS,
    STANDING_OF,
    Report,
    Standing,
    read_standing,
)

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
_SOUND = Breaker()


@dataclass(frozen=True, slots=True)
class _News:
    """What attempts to one destination came to and was not reported yet."""

    outcomes: Outcomes = Outcomes()  # noqa: RUF009  # it is frozen
    not_before: int | None = None


class Holds:
    """The destinations that deliveries wait for.

    A destination that never made trouble is unknown here, and an attempt that it answers is told
    to nobody. What is known is the database's, as it was a moment ago: a claim asks the database
    itself.

    Args:
        database: Where destinations are.
        rules: When a breaker opens.
        held: Told of each destination that is held from now on.
        now: The clock, in milliseconds since 1970.
        draw: A random number in [0, 1), for jitter.
    """

    def __init__(
        self,
        database: Database,
        rules: DeliveryRules,
        *,
        held: Callable[[str], None],
        now: Callable[[], int],
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._rules = rules
        self._held = held
        self._now = now
        self._draw = draw
        self._known: dict[str, Standing] = {}
        self._news: dict[str, _News] = {}
        self._reporting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        database.subscribe(self._told)

    async def open(self) -> None:
        """Read what is known of every destination that made trouble."""
        rows = await self._database.fetch(ALL_STANDINGS, {"now": self._now()})
        known = {standing.name: standing for standing in map(read_standing, rows)}
        before, self._known = self._known, known
        for name in known:
            if name not in before:
                self._check(name)

    async def close(self) -> None:
        """Report nothing more."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------ asking

    def holds(self, name: str) -> bool:
        """Whether deliveries to a destination wait."""
        standing = self._known.get(name)
        return standing is not None and standing.holds(self._now())

    def may_go(self, name: str, *, probe: bool) -> bool:
        """Whether a delivery that was claimed may be sent; a probe may, unless it is disabled."""
        standing = self._known.get(name)
        if standing is None or not standing.holds(self._now()):
            return True
        return probe and standing.disabled_at is None

    def look_up(self, name: str) -> None:
        """Ask the database about a destination: it was found to know better."""
        self._start(self._read(name))

    # ------------------------------------------------------------ telling

    def answered(self, name: str, *, probe: bool, not_before: int | None = None) -> None:
        """Note an attempt that the destination answered, other than with a 5xx that may pass.

        Args:
            name: The destination.
            probe: The attempt was that of an open breaker, whatever is known here.
            not_before: Until when it asked to be left alone, in milliseconds since 1970.
        """
        pending = self._news.get(name)
        standing = self._known.get(name)
        in_trouble = (
            pending is not None
            or name in self._reporting
            or (standing is not None and standing.breaker != _SOUND)
        )
        if in_trouble or probe or not_before is not None:
            known = None if pending is None else pending.not_before
            self._tell(name, _News(Outcomes(answered=True), _latest(known, not_before)))

    def failed(self, name: str, *, probe: bool, not_before: int | None = None) -> None:
        """Note an attempt that failed: the network, a timeout, or a 5xx."""
        pending = self._news.get(name) or _News()
        self._tell(
            name,
            _News(
                pending.outcomes.and_failed(probe=probe), _latest(pending.not_before, not_before)
            ),
        )

    def came_to_nothing(self, name: str) -> None:
        """Note a probe that was not sent after all: another delivery may be it."""
        self._start(self._end_probe(name))

    def tidy(self) -> None:
        """Forget pauses that are over."""
        for name, standing in list(self._known.items()):
            if standing.is_clean and not standing.holds(self._now()):
                del self._known[name]

    async def _end_probe(self, name: str) -> None:
        try:
            await self._database.write(EndProbe(name, self._now()))
        except DatabaseClosed:
            pass
        except Exception as error:  # noqa: BLE001  # whatever the driver raises
            # It is waited for in vain until its time is over.
            logger.warning(
                "cannot let go of a probe", extra={"destination": name, "error": repr(error)}
            )

    def _tell(self, name: str, news: _News) -> None:
        self._news[name] = news
        if name not in self._reporting:
            self._start(self._report(name))
            self._reporting.add(name)

    async def _report(self, name: str) -> None:
        """Write what there is to tell of a destination, and what comes meanwhile."""
        try:
            while (news := self._news.pop(name, None)) is not None:
                report = Report(
                    name,
                    news.outcomes,
                    news.not_before,
                    self._now(),
                    self._rules.of(name).breaker,
                    self._draw(),
                )
                try:
                    self.learn(await self._database.write(report))
                except DatabaseClosed:
                    return
                except Exception as error:  # noqa: BLE001  # whatever the driver raises
                    # Told again with the next outcome; it is not worth more.
                    logger.warning(
                        "cannot report on a destination",
                        extra={"destination": name, "error": repr(error)},
                    )
        finally:
            self._reporting.discard(name)

    # ------------------------------------------------------------ hearing

    def _told(self, channel: str, payload: str) -> None:
        if channel == CHANNEL:
            self._start(self._read(payload))
        elif channel == "":
            self._start(self._read_all())

    async def _read(self, name: str) -> None:
        async def ask() -> None:
            rows = await self._database.fetch(STANDING_OF, {"name": name})
            self.learn(read_standing(rows[0]) if rows else Standing(name))

        await self._until_answered(ask)

    async def _read_all(self) -> None:
        await self._until_answered(self.open)

    async def _until_answered(self, ask: Callable[[], Any]) -> None:
        while True:
            try:
                await ask()
                return
            except DatabaseClosed:
                return
            except Exception as error:  # noqa: BLE001  # whatever the driver raises
                logger.warning("cannot read of destinations", extra={"error": repr(error)})
            await asyncio.sleep(_AGAIN_SECONDS)

    def learn(self, standing: Standing) -> None:
        """Take in what the database says of a destination."""
        before = self._known.get(standing.name, Standing(standing.name))
        if standing.is_clean and not standing.holds(self._now()):
            self._known.pop(standing.name, None)
        else:
            self._known[standing.name] = standing
        if standing.breaker.is_open and not before.breaker.is_open:
            logger.warning(
                "a destination fails; its deliveries wait",
                extra={"destination": standing.name, "failures": standing.breaker.failures},
            )
        elif before.breaker.is_open and not standing.breaker.is_open:
            logger.info("a destination answers again", extra={"destination": standing.name})
        self._check(standing.name)

    def _check(self, name: str) -> None:
        if self.holds(name):
            self._held(name)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def standings(self) -> Sequence[Standing]:
        """What is known, for metrics."""
        return list(self._known.values())


def _latest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
