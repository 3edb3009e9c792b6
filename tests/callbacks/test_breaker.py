"""The breaker as a state machine."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callbacks.breaker import Breaker, BreakerPolicy, Outcomes

POLICY = BreakerPolicy()
NOW = 1_000_000
MINUTE_MS = 60_000

CLOSED = Breaker()
OPEN = Breaker(failures=5, openings=1, open_until=NOW - 1)
PROBED = Breaker(failures=5, openings=1, open_until=NOW - 1, probe_until=NOW + 9)


def after(breaker: Breaker, outcomes: Outcomes, policy: BreakerPolicy = POLICY) -> Breaker:
    return breaker.after(outcomes, now=NOW, policy=policy, random=0.5)


@pytest.mark.parametrize(
    ("before", "outcomes", "expected"),
    [
        pytest.param(CLOSED, Outcomes(failed=1), Breaker(failures=1), id="one failure"),
        pytest.param(Breaker(failures=3), Outcomes(failed=1), Breaker(failures=4), id="more"),
        pytest.param(
            Breaker(failures=4),
            Outcomes(failed=1),
            Breaker(failures=5, openings=1, open_until=NOW + MINUTE_MS),
            id="the fifth in a row opens",
        ),
        pytest.param(
            CLOSED,
            Outcomes(failed=7),
            Breaker(failures=7, openings=1, open_until=NOW + MINUTE_MS),
            id="seven at once open",
        ),
        pytest.param(Breaker(failures=4), Outcomes(answered=True), CLOSED, id="an answer resets"),
        pytest.param(
            Breaker(failures=4),
            Outcomes(answered=True, failed=2),
            Breaker(failures=2),
            id="failures after an answer count from there",
        ),
        pytest.param(OPEN, Outcomes(failed=9), OPEN, id="those under way count for nothing"),
        pytest.param(PROBED, Outcomes(failed=9), PROBED, id="nor while a probe is under way"),
        pytest.param(
            PROBED,
            Outcomes(failed=1, probe=True),
            Breaker(failures=6, openings=2, open_until=NOW + 2 * MINUTE_MS),
            id="a failed probe doubles the wait",
        ),
        pytest.param(PROBED, Outcomes(answered=True), CLOSED, id="an answered probe closes"),
        pytest.param(OPEN, Outcomes(answered=True), CLOSED, id="so does any other answer"),
        pytest.param(
            OPEN,
            Outcomes(answered=True, failed=5),
            Breaker(failures=5, openings=1, open_until=NOW + MINUTE_MS),
            id="answered and failed again opens for the first time",
        ),
    ],
)
def test_transitions(before: Breaker, outcomes: Outcomes, expected: Breaker) -> None:
    assert after(before, outcomes) == expected


def test_the_wait_doubles_up_to_a_quarter_of_an_hour() -> None:
    breaker = after(CLOSED, Outcomes(failed=5))
    waits = []
    for _ in range(6):
        assert breaker.open_until is not None
        waits.append((breaker.open_until - NOW) // MINUTE_MS)
        breaker = after(breaker, Outcomes(failed=1, probe=True))
    assert waits == [1, 2, 4, 8, 15, 15]


def test_outcomes_add_up() -> None:
    outcomes = Outcomes().and_failed(probe=False).and_failed(probe=True).and_failed(probe=False)
    assert outcomes == Outcomes(failed=3, probe=True)


@given(openings=st.integers(0, 10**6), random=st.floats(0, 1))
def test_any_number_of_openings_has_a_wait(openings: int, random: float) -> None:
    wait = POLICY.opening(openings, random)
    assert timedelta(seconds=54) <= wait <= timedelta(minutes=16.5)


@given(
    st.lists(
        st.builds(
            Outcomes, failed=st.integers(0, 8), answered=st.booleans(), probe=st.booleans()
        ).filter(lambda o: o.failed or o.answered)
    ),
    st.integers(1, 6),
)
def test_it_is_open_only_after_so_many_failures_in_a_row(
    history: list[Outcomes], threshold: int
) -> None:
    breaker, in_a_row = CLOSED, 0
    for outcomes in history:
        breaker = after(breaker, outcomes, BreakerPolicy(failures=threshold))
        in_a_row = outcomes.failed + (0 if outcomes.answered else in_a_row)
        if breaker.is_open:
            assert in_a_row >= threshold
            assert breaker.openings >= 1
        else:
            assert breaker.failures == in_a_row < threshold
