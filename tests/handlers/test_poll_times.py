import pytest

from handlers.poll_times import (
    Questions,
    ask_again_seconds,
    is_check_due,
    last_check_at,
    next_check_at,
    retry_seconds,
)

START = 1_000_000
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


@pytest.mark.parametrize(
    ("elapsed", "seconds"), [(0, 5), (10 * SECOND, 5), (40 * SECOND, 20), (HOUR, 60)]
)
def test_where_nobody_calls_back_it_is_asked_ever_more_rarely(elapsed: int, seconds: float) -> None:
    assert ask_again_seconds(elapsed) == seconds


@pytest.mark.parametrize(
    ("elapsed", "seconds"), [(0, 0.2), (SECOND, 0.5), (MINUTE, 30), (HOUR, 60)]
)
def test_retries_back_off(elapsed: int, seconds: float) -> None:
    assert retry_seconds(elapsed, 0.5) == pytest.approx(seconds)
    assert retry_seconds(elapsed, 0.0) == pytest.approx(seconds * 0.8)
    assert retry_seconds(elapsed, 1.0) == pytest.approx(seconds * 1.2)


def test_checks_for_lost_completions_are_ever_further_apart() -> None:
    now, checks = START, []
    for _ in range(9):
        now = next_check_at(START, now)
        checks.append((now - START) // MINUTE)
    assert checks == [10, 20, 40, 80, 160, 320, 640, 1000, 1360]


def test_an_operation_that_wakes_for_a_check_is_in_time_for_it() -> None:
    at = next_check_at(START, START)
    assert last_check_at(START, at - 1) is None
    assert not is_check_due(START, at - 1)
    assert is_check_due(START, at)
    assert is_check_due(START, at + 30 * SECOND)
    assert not is_check_due(START, at + 5 * MINUTE)


def test_questions_are_held_open_at_first() -> None:
    questions = Questions(START, START, called_back=False, hold_ms=5 * SECOND)
    assert questions.next_at == START
    assert questions.hold_seconds(START) == 5
    questions.asked(START, START + 4 * SECOND, 0.0)
    assert questions.next_at == START + 4 * SECOND
    assert questions.hold_seconds(START + 4 * SECOND) == 1
    questions.asked(START + 4 * SECOND, START + 5 * SECOND, 0.0)
    assert questions.next_at == START + 10 * SECOND
    assert questions.hold_seconds(START + 10 * SECOND) == 0


def test_a_side_that_holds_no_question_open_is_not_asked_in_a_loop() -> None:
    questions = Questions(START, START, called_back=False, hold_ms=10 * SECOND)
    waits, now = [], START
    for _ in range(6):
        questions.asked(now, now, 0.0)
        assert questions.next_at is not None
        waits.append(questions.next_at - now)
        now = questions.next_at
    assert waits == [100, 200, 400, 800, 1000, 1000]
    questions.asked(now, now, 30.0)
    assert questions.next_at == now + 30 * SECOND


def test_who_calls_back_is_asked_only_in_case_that_was_lost() -> None:
    questions = Questions(START, START + MINUTE, called_back=True, hold_ms=0)
    assert questions.next_at == START + 10 * MINUTE
    questions.asked(START + 10 * MINUTE, START + 10 * MINUTE + 1, 0.0)
    assert questions.next_at == START + 20 * MINUTE
    woken = Questions(START, START + 20 * MINUTE + SECOND, called_back=True, hold_ms=0)
    assert woken.next_at == START + 20 * MINUTE + SECOND
    woken.give_up()
    assert woken.next_at is None
