"""Operations that lost several processes: taken up one at a time, so that the culprit shows."""

from collections.abc import Callable

from callbacks.database import Database
from handlers.clock import Clock
from handlers.engine_settings import EngineSettings
from handlers.store.claims import ON_PROBATION

_CHECK_MS = 500
_NEVER_MS = 2**62


class Probation:
    """Knows which operation is being watched, and whether the next one may follow.

    All that was in memory with an operation that kills its process was lost with it, and looks as
    suspicious. One by one only the culprit goes on losing processes.

    Args:
        database: Where operations and journals are.
        is_live: Whether an operation is in memory.
        clock: The time.
        settings: How long a probation lasts.
        me: This process.
    """

    def __init__(
        self,
        database: Database,
        is_live: Callable[[str], bool],
        clock: Clock,
        settings: EngineSettings,
        me: str,
    ) -> None:
        self._database = database
        self._is_live = is_live
        self._clock = clock
        self._length_ms = round(settings.probation_seconds * 1000)
        self._me = me
        self._token: str | None = None
        self._until = 0
        self._passed: str | None = None
        self.waiting: list[str] = []
        """Owners that are gone and may have left suspects behind."""

    @property
    def next_at(self) -> int:
        """When to look again, in milliseconds since 1970."""
        if self._token is None:
            return _NEVER_MS
        return min(self._until, self._clock.now_ms() + _CHECK_MS)

    def expect(self, owner: str) -> None:
        """Have the suspects of a process taken that is gone."""
        if owner not in self.waiting:
            self.waiting.append(owner)

    def begin(self, token: str) -> None:
        """Watch an operation that was taken alone."""
        self._token = token
        self._until = self._clock.now_ms() + self._length_ms

    def passed(self) -> str | None:
        """Return, once, the operation that outlived its probation and is still running."""
        passed, self._passed = self._passed, None
        return passed if passed is not None and self._is_live(passed) else None

    async def is_over(self) -> bool:
        """Whether the next suspect may be taken up."""
        token = self._token
        if token is None:
            return True
        if self._is_live(token):
            asked = {"token": token, "me": self._me}
            rows = await self._database.fetch(ON_PROBATION, asked)
            has_recorded = bool(rows and rows[0][0])
            if not has_recorded and self._clock.now_ms() < self._until:
                return False
            if not has_recorded:
                self._passed = token
        self._token = None
        return True
