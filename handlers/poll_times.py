"""When to ask how a call has ended: how often, and ever more rarely, the longer it takes.

All follows from when the call began, so that it needs no record and is the same after a restart.
"""

_HELD_OFF_FIRST_MS = 100
_HELD_OFF_AT_MOST_MS = 1000
_ASK_FIRST_SECONDS = 5.0
_ASK_AT_MOST_SECONDS = 60.0
_CHECK_FIRST_MS = 10 * 60 * 1000
_CHECK_AT_MOST_MS = 6 * 3600 * 1000
_CHECK_WITHIN_MS = 60 * 1000
_RETRY_FIRST_SECONDS = 0.2
_RETRY_AT_MOST_SECONDS = 60.0


def ask_again_seconds(elapsed_ms: int) -> float:
    """Return the wait between two questions where nobody calls back: 5 s, later 60 s."""
    return min(max(elapsed_ms / 2000, _ASK_FIRST_SECONDS), _ASK_AT_MOST_SECONDS)


def retry_seconds(elapsed_ms: int, uniform: float) -> float:
    """Return the wait before a request without an answer is sent again: half as long as so far.

    Args:
        elapsed_ms: The time since the first attempt. The wait is at most 60 s.
        uniform: A random number from 0 to 1: the wait varies by a fifth.
    """
    wait = min(max(elapsed_ms / 2000, _RETRY_FIRST_SECONDS), _RETRY_AT_MOST_SECONDS)
    return wait * (0.8 + 0.4 * uniform)


def last_check_at(started_at: int, now: int) -> int | None:
    """Return the moment at or before now at which a completion may be presumed lost; or None.

    These are 10, 20, 40, ... minutes after the start, and at last 6 hours apart. Milliseconds.
    """
    check = started_at + _CHECK_FIRST_MS
    if check > now:
        return None
    while (following := check + _gap_ms(check - started_at)) <= now:
        check = following
    return check


def next_check_at(started_at: int, now: int) -> int:
    """Return the next such moment after now."""
    check = last_check_at(started_at, now)
    if check is None:
        return started_at + _CHECK_FIRST_MS
    return check + _gap_ms(check - started_at)


def is_check_due(started_at: int, now: int) -> bool:
    """Whether now is such a moment: an operation that slept until then wakes a little later."""
    check = last_check_at(started_at, now)
    return check is not None and now - check < _CHECK_WITHIN_MS


def _gap_ms(elapsed_ms: int) -> int:
    return min(elapsed_ms, _CHECK_AT_MOST_MS)


class Questions:
    """When the other side is asked next how a call has ended.

    Args:
        started_at: When the call was started; milliseconds since 1970, as all times here.
        now: When the wait for its end begins, or goes on after a restart.
        called_back: It says so by itself, so that this is only in case that was lost.
        hold_ms: For how long from now on it may keep a question open until it knows.

    Attributes:
        next_at: The time of the next question; None for never.
    """

    def __init__(self, started_at: int, now: int, *, called_back: bool, hold_ms: int) -> None:
        self.called_back = called_back
        self._started_at = started_at
        self._held_until = now if called_back else now + hold_ms
        self._held_off_ms = _HELD_OFF_FIRST_MS
        self.next_at: int | None = now
        if called_back and not is_check_due(started_at, now):
            self.next_at = next_check_at(started_at, now)

    def hold_seconds(self, now: int) -> float:
        """Return for how long the other side may keep the question open."""
        return max(0, self._held_until - now) / 1000

    def asked(self, asked_at: int, now: int, retry_after_seconds: float) -> None:
        """Take note that a question was answered with nothing."""
        if self.called_back:
            self.next_at = next_check_at(self._started_at, now)
            return
        if now >= self._held_until:
            pause_ms = round(ask_again_seconds(now - self._started_at) * 1000)
        elif now - asked_at >= (self._held_until - asked_at) / 2:
            pause_ms = 0
        else:
            # It answered at once instead of waiting: not to be asked in a tight loop.
            pause_ms = self._held_off_ms
            self._held_off_ms = min(self._held_off_ms * 2, _HELD_OFF_AT_MOST_MS)
        self.next_at = now + max(pause_ms, round(retry_after_seconds * 1000))

    def give_up(self) -> None:
        """Ask no more: it does not answer such questions."""
        self.next_at = None
