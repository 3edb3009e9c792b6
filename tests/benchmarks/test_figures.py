import pytest

from benchmarks.comparisons import Comparison, Figure, Pair, Sample, judge
from benchmarks.load import Loop, Outcome
from benchmarks.machine import Usage
from benchmarks.report import Run, render
from benchmarks.sampling import WAITING, Sampled, shares

FIGURE = Figure("completed/s", lambda outcome: outcome.completed_per_second, at_least=0.35)
COMPARISON = Comparison("durable", "floor", "run", Loop.START, 64, [FIGURE])


def sample(per_second: int, lost: int = 0) -> Sample:
    outcome = Outcome(accepted=per_second, completed=per_second, seconds=1.0, lost=lost)
    return Sample(outcome, Usage(server_cpu_seconds=1.0, other_cores=0.1))


def run(*pairs: Pair) -> Run:
    return Run(len(pairs), 1.0, {"Python": "3"}, {COMPARISON: list(pairs)}, Sampled({"x": 100.0}))


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    # A machine that is twice as fast in the second round changes nothing.
    pairs = [Pair(sample(50), sample(100)), Pair(sample(100), sample(200))]
    (judged,) = judge(COMPARISON, [*pairs, Pair(sample(90), sample(100))])
    assert judged.ratio == pytest.approx(0.5)
    assert judged.is_met


def test_a_run_says_what_is_missed() -> None:
    assert run(Pair(sample(50), sample(100))).missed() == []
    (slow,) = run(Pair(sample(30), sample(100))).missed()
    assert "0.30 of the floor's" in slow
    (astray,) = run(Pair(sample(50, lost=1), sample(100))).missed()
    assert "1 lost" in astray


def test_the_report_has_the_verdict() -> None:
    assert "| at least 0.35 | met" in render(run(Pair(sample(50), sample(100))))
    assert "| at least 0.35 | MISSED" in render(run(Pair(sample(30), sample(100))))


@pytest.mark.parametrize(
    ("inner", "concern"),
    [
        ("send (uvicorn/protocols/http/httptools_impl.py:9);write (libc.so.6)", "HTTP server"),
        ("_answer (gateway/nexus_routes.py:9);decode (nexus_spec/content.py:9)", "request parsing"),
        ("apply (callbacks/outbox.py:9);dumps (json/__init__.py:9)", "database"),
        ("_commit (callbacks/database/sqlite.py:9);fdatasync (libc.so.6)", "database: fsync"),
        ("_checked_target (callbacks/sender.py:9);name (callbacks/egress.py:9)", "delivery"),
        ("run (benchmarks/bench_service.py:9)", "engine"),
        ("start (handlers/engine.py:9);gc_collect_main (python)", "garbage collector"),
        ("uv__run_timers (uvloop)", "event loop"),
        ("epoll_pwait (libc.so.6)", WAITING),
    ],
)
def test_a_sample_counts_for_the_innermost_concern(inner: str, concern: str) -> None:
    outer = "main (gateway/cli.py:9);run (asyncio/runners.py:9)"
    ((name, share),) = shares([f"{outer};{inner} 3", "run (threading.py:9) 5"]).items()
    assert name.startswith(concern)
    assert share == 100
