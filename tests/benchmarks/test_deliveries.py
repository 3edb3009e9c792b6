import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import delivery_drain, delivery_isolation, delivery_speed
from benchmarks.completions import BODY_BYTES, Arrival, astray, body_of, read_body
from benchmarks.databases import Databases, databases
from benchmarks.delivery_drain import Drain, uneven_sizes
from benchmarks.delivery_isolation import HEALTHY, PHASES, TROUBLED, Phase
from benchmarks.delivery_speed import BARE, SENDER, Speed
from benchmarks.servers import ServerNotStarted, child_figures

SERVICE = delivery_speed.SERVICES["sqlite"]


def speeds(bare: float, service: float, lost: int = 0) -> delivery_speed.Round:
    def speed(per_second: float) -> Speed:
        return Speed(
            per_second=per_second, cpu_ms=0.1, commits=0.02, writes=1, lost=lost, doubled=0,
            other_cores=0,
        )  # fmt: skip

    return delivery_speed.Round({BARE: speed(bare), SENDER: speed(bare), SERVICE: speed(service)})


def phases(healthy_p99: float, troubled_p99: float, doubled: int = 0) -> delivery_isolation.Round:
    p99 = dict.fromkeys(PHASES, troubled_p99) | {HEALTHY: healthy_p99}
    return delivery_isolation.Round(
        {
            name: Phase(
                p50=1, p99=p99[name], completions=10, lost=0, doubled=doubled, late_ms=0,
                other_cores=0,
            )
            for name in PHASES
        }
    )  # fmt: skip


def drain(*, begun: float = 5.0, lost: int = 0) -> Drain:
    return Drain(
        sizes=[90, 8, 2],
        seconds=100.0,
        first_at=[0.0, 1.0, begun],
        last_at=[100.0, 50.0, 20.0],
        shares={
            "10 largest": [0, 50, 100],
            "10 median": [0, 90, 100],
            "10 smallest": [0, 100, 100],
        },
        cpu_ms=0.2,
        commits=0.02,
        peak_bytes=10**8,
        lost=lost,
        doubled=0,
        other_cores=0,
    )


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Databases]:
    with databases("sqlite", tmp_path) as made:
        yield made


# ------------------------------------------------------------ what is sent and counted


def test_a_completion_says_which_it_is() -> None:
    body = body_of(12, 345.678912)
    assert read_body(body) == (12, 345.678912)
    assert len(body) == BODY_BYTES
    json.loads(body)


def test_every_completion_is_counted_once() -> None:
    arrivals = [Arrival(number, 0.0, 1.0) for number in (1, 2, 2, 2, 4)]
    assert astray(arrivals, [1, 2, 3]) == (1, 2)


def test_a_backlog_is_divided_very_unevenly() -> None:
    sizes = uneven_sizes(100_000, 1_000)
    assert sum(sizes) == 100_000
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10_000
    assert sizes[500] < 50
    assert sizes[-1] > 0


# ------------------------------------------------------------ verdicts


def test_the_share_of_the_bare_client_is_the_median_of_the_rounds() -> None:
    # A machine that is twice as fast in the second round changes nothing.
    rounds = [speeds(100, 50), speeds(200, 100), speeds(100, 10)]
    assert delivery_speed.missed(rounds) == []
    assert "| 0.50 (0.10..0.50) | at least 0.4 | met" in delivery_speed.render(rounds, 10)
    (slow,) = delivery_speed.missed([speeds(100, 30)])
    assert "0.30 of aiohttp, bare" in slow
    assert "MISSED" in delivery_speed.render([speeds(100, 30)], 10)
    assert "1 lost" in delivery_speed.missed([speeds(100, 50, lost=1)])[0]


def test_the_trouble_of_others_is_judged_by_the_median_of_the_rounds() -> None:
    rounds = [phases(10, 12), phases(20, 24), phases(10, 30)]
    assert delivery_isolation.missed(rounds) == []
    assert "| p99 at most 1.3 | met" in delivery_isolation.render(rounds, 1.0)
    (felt,) = delivery_isolation.missed([phases(10, 14)])
    assert f"1.40 times as long with {TROUBLED}" in felt
    assert "MISSED" in delivery_isolation.render([phases(10, 14)], 1.0)
    assert "1 doubled" in delivery_isolation.missed([phases(10, 10, doubled=1)])[0]


def test_a_drain_is_fair_if_all_have_begun_early() -> None:
    fair = drain()
    assert delivery_drain.missed(fair) == []
    assert fair.all_begun == pytest.approx(0.05)
    assert fair.small_done == pytest.approx(1.0)  # all three are small
    assert "| within 15% | met" in delivery_drain.render(fair)
    (unfair,) = delivery_drain.missed(drain(begun=16.0))
    assert "16% of the drain" in unfair
    assert "1 lost" in delivery_drain.missed(drain(lost=1))[0]


def test_a_drain_has_a_picture() -> None:
    picture = delivery_drain.picture(drain())
    ET.fromstring(picture)  # noqa: S314  # our own
    assert "10 smallest" in picture


# ------------------------------------------------------------ the real thing, small


def test_all_are_delivered_once_from_a_real_outbox(sqlite: Databases, tmp_path: Path) -> None:
    (one,) = delivery_speed.measure(tmp_path, [sqlite], deliveries=200, rounds=1, quiet_seconds=0)
    assert set(one.speeds) == {BARE, SENDER, SERVICE}
    assert {(speed.lost, speed.doubled) for speed in one.speeds.values()} == {(0, 0)}
    assert one.speeds[SERVICE].commits > 0


def test_a_backlog_drains_whole(sqlite: Databases, tmp_path: Path) -> None:
    found = delivery_drain.measure(
        tmp_path, sqlite, deliveries=300, destinations=30, quiet_seconds=0
    )
    assert (found.lost, found.doubled) == (0, 0)
    assert len(found.first_at) == 30
    assert all(shares[-1] == 100 for shares in found.shares.values())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_healthy_destinations_lose_nothing_to_sick_ones(sqlite: Databases, tmp_path: Path) -> None:
    (one,) = delivery_isolation.measure(tmp_path, sqlite, seconds=0.5, rounds=1, quiet_seconds=0)
    for phase in one.phases.values():
        assert (phase.lost, phase.doubled) == (0, 0)
        assert phase.completions > 100
        assert 0 < phase.p50 <= phase.p99


def test_a_measurement_that_breaks_says_so() -> None:
    with pytest.raises(ServerNotStarted, match="--url"):
        child_figures("benchmarks.delivering", "bare", timeout_seconds=30)


def test_a_measurement_that_does_not_end_is_ended() -> None:
    with pytest.raises(ServerNotStarted, match="did not end within 1 s"):
        child_figures("benchmarks.receiver", timeout_seconds=1)
