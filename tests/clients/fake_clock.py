"""A clock that moves only when somebody sleeps on it."""

from datetime import UTC, datetime, timedelta

from clients import Clock

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    def __init__(self) -> None:
        self.elapsed = 0.0
        self.sleeps: list[float] = []

    @property
    def clock(self) -> Clock:
        return Clock(
            monotonic=lambda: self.elapsed,
            sleep=self._sleep,
            utcnow=lambda: BEGINNING + timedelta(seconds=self.elapsed),
            uniform=lambda: 0.5,
        )

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.elapsed += seconds
