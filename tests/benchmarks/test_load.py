import pytest

from benchmarks.load import Load, Loop, Outcome, drive, percentile_ms
from tests.benchmarks.fake_server import Behaviour, serving

pytestmark = pytest.mark.anyio


def load(url: str, loop: Loop) -> Load:
    return Load(url=url, loop=loop, clients=4, seconds=0.2, drain_seconds=0.2, grace_seconds=0.1)


def astray(outcome: Outcome) -> tuple[int, int, int]:
    return outcome.lost, outcome.duplicates, outcome.failed


@pytest.mark.parametrize("loop", [Loop.START, Loop.END_TO_END])
async def test_counts_every_durable_operation_once(loop: Loop) -> None:
    async with serving(lambda _: Behaviour()) as url:
        outcome = await drive(load(url, loop))
    assert astray(outcome) == (0, 0, 0)
    assert outcome.accepted == outcome.completed == len(outcome.latencies) > 4
    assert outcome.completed_per_second > 0
    assert 0 < percentile_ms(outcome.latencies, 50) <= percentile_ms(outcome.latencies, 99)


async def test_an_inline_operation_is_complete_with_its_answer() -> None:
    async with serving(lambda _: Behaviour(status=200)) as url:
        outcome = await drive(load(url, Loop.INLINE))
    assert astray(outcome) == (0, 0, 0)
    assert outcome.accepted == outcome.completed > 4


async def test_an_accepted_operation_without_completion_is_lost() -> None:
    async with serving(lambda n: Behaviour(completions=0 if n == 2 else 1)) as url:
        outcome = await drive(load(url, Loop.START))
    assert astray(outcome) == (1, 0, 0)
    assert outcome.completed == outcome.accepted - 1


async def test_a_second_completion_is_a_duplicate() -> None:
    async with serving(lambda n: Behaviour(completions=2 if n == 2 else 1)) as url:
        outcome = await drive(load(url, Loop.START))
    assert astray(outcome) == (0, 1, 0)
    assert outcome.completed == outcome.accepted


@pytest.mark.parametrize(
    "odd", [Behaviour(status=500), Behaviour(state="failed"), Behaviour(keeps_body=False)]
)
async def test_an_operation_that_ends_otherwise_has_failed(odd: Behaviour) -> None:
    async with serving(lambda n: odd if n == 2 else Behaviour()) as url:
        outcome = await drive(load(url, Loop.END_TO_END))
    assert astray(outcome) == (0, 0, 1)
    assert sum(outcome.errors.values()) == 1


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with serving(lambda _: Behaviour()) as url:
        pass
    outcome = await drive(load(url, Loop.START))
    assert outcome.failed == 4
    assert outcome.completed == 0


def test_only_this_machine_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        load("http://192.0.2.1/bench/run", Loop.START)
