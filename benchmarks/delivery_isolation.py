"""How much healthy destinations feel of a dead and a slow one among them."""

import socket
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.completions import Arrival, astray
from benchmarks.databases import Databases
from benchmarks.load import percentile_ms
from benchmarks.machine import Watch, wait_until_quiet
from benchmarks.outbox_stock import destination_name
from benchmarks.parts import progress, table
from benchmarks.receiver import LATE, arrivals, receiver
from benchmarks.servers import child_figures

DESTINATIONS = 50
PER_SECOND = 400
AT_MOST = 1.3

HEALTHY = "all healthy"
TROUBLED = "one dead, one slow"
WITHOUT_BREAKERS = "the same, without breakers"
PHASES = (HEALTHY, TROUBLED, WITHOUT_BREAKERS)

_DEAD, _SLOW = 7, 31  # which ones
_TIMEOUT_SECONDS = 2.0
_LATE_SECONDS = 3.0
_WARM_UP_SECONDS = 1.0
_CHILD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What the healthy destinations felt, in milliseconds from the freezing to the receipt."""

    p50: float
    p99: float
    completions: int
    lost: int
    doubled: int
    late_ms: float  # how far the load itself fell behind, at most
    other_cores: float


@dataclass(frozen=True)
class Round:
    """All phases, one right after the other."""

    phases: dict[str, Phase]

    def ratio(self, phase: str, name: str = "p99") -> float:
        """Return a latency as a multiple of what it is where all are healthy."""
        value: float = getattr(self.phases[phase], name)
        sound: float = getattr(self.phases[HEALTHY], name)
        return value / sound


def measure(
    folder: Path, made: Databases, *, seconds: float, rounds: int, quiet_seconds: float
) -> list[Round]:
    """Measure all rounds, the other way round in every second one."""
    found = []
    for number in range(rounds):
        progress(f"  isolation, round {number + 1} of {rounds}")
        wait_until_quiet(quiet_seconds)
        order = PHASES if number % 2 == 0 else PHASES[::-1]
        found.append(Round({phase: _phase(folder, made, phase, seconds) for phase in order}))
    return found


def missed(rounds: Sequence[Round]) -> list[str]:
    """Return what is not as required, in words."""
    lines = []
    if (ratio := _ratio(rounds, TROUBLED)) > AT_MOST:
        lines.append(
            f"p99 at healthy destinations is {ratio:.2f} times as long with {TROUBLED}, required "
            f"is at most {AT_MOST:g}"
        )
    for one in rounds:
        for name, phase in one.phases.items():
            if phase.lost or phase.doubled:
                lines.append(f"{name}: {phase.lost} lost, {phase.doubled} doubled")
    return lines


def render(rounds: Sequence[Round], seconds: float) -> str:
    """Return the rounds as Markdown."""
    header = ("destinations", "p50 ms", "p99 ms", "p50 ratio", "p99 ratio", "required", "")
    healthy = statistics.median(one.phases[HEALTHY].completions for one in rounds)
    conditions = (
        f"Isolation: {PER_SECOND} completions a second to {DESTINATIONS} destinations, "
        f"{len(rounds)} rounds of {seconds:g} s for each line; from the freezing to the receipt, "
        f"at the {DESTINATIONS - 2} destinations that are always healthy ({healthy:,.0f} "
        "completions a round); medians. Ratios are medians of the rounds' own, with the lowest and "
        "the highest in brackets."
    )
    return "\n\n".join([conditions, table(header, [_row(rounds, phase) for phase in PHASES])])


def _row(rounds: Sequence[Round], phase: str) -> tuple[str, ...]:
    p50, p99 = (
        statistics.median(getattr(one.phases[phase], name) for one in rounds)
        for name in ("p50", "p99")
    )
    ratios = ["-", "-"]
    if phase != HEALTHY:
        of_both = [[one.ratio(phase, name) for one in rounds] for name in ("p50", "p99")]
        ratios = [
            f"{statistics.median(of_one):.2f} ({min(of_one):.2f}..{max(of_one):.2f})"
            for of_one in of_both
        ]
    required = verdict = "-"
    if phase == TROUBLED:
        required = f"p99 at most {AT_MOST:g}"
        verdict = "met" if _ratio(rounds, phase) <= AT_MOST else "MISSED"
    return phase, f"{p50:.2f}", f"{p99:.2f}", *ratios, required, verdict


def _ratio(rounds: Sequence[Round], phase: str) -> float:
    return statistics.median(one.ratio(phase) for one in rounds)


def _phase(folder: Path, made: Databases, phase: str, seconds: float) -> Phase:
    database = made.new(migrated=True)
    total = round(PER_SECOND * (seconds + _WARM_UP_SECONDS))
    with receiver(folder, late_seconds=_LATE_SECONDS) as server, _dead_port() as dead:
        port = int(server.base_url.rpartition(":")[2])
        urls = [f"{destination_name(place, port)}/done" for place in range(DESTINATIONS)]
        if phase != HEALTHY:
            urls[_DEAD] = f"{destination_name(_DEAD, dead)}/done"
            urls[_SLOW] = f"{destination_name(_SLOW, port)}{LATE}"
        watch = Watch()
        figures = child_figures(
            "benchmarks.delivering",
            *("endings", "--database", database.url, "--deliveries", str(total)),
            *("--per-second", str(PER_SECOND), "--timeout-seconds", str(_TIMEOUT_SECONDS)),
            *(["--without-breaker"] if phase == WITHOUT_BREAKERS else []),
            *("--urls", *urls),
            timeout_seconds=_CHILD_SECONDS + seconds,
        )
        usage = watch.stop()
        arrived = arrivals(server)
    expected = [number for number in range(1, total + 1) if _is_healthy(number)]
    lost, doubled = astray(arrived, expected)
    latencies = sorted(_latencies(arrived))
    return Phase(
        p50=percentile_ms(latencies, 50),
        p99=percentile_ms(latencies, 99),
        completions=len(latencies),
        lost=lost,
        doubled=doubled,
        late_ms=1000 * figures["late_seconds"],
        other_cores=usage.other_cores,
    )


def _latencies(arrived: Sequence[Arrival]) -> list[float]:
    return [
        arrival.at - arrival.frozen_at
        for arrival in arrived
        if arrival.number > PER_SECOND * _WARM_UP_SECONDS and _is_healthy(arrival.number)
    ]


def _is_healthy(number: int) -> bool:
    """Whether an operation's destination is one that is never dead or slow; each has its turn."""
    return (number - 1) % DESTINATIONS not in {_DEAD, _SLOW}


@contextmanager
def _dead_port() -> Iterator[int]:
    """Hold a port on which nobody listens: connections are refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port
