"""Measures the start after a kill: `python -m benchmarks.recovery`.

100,000 operations are pending when a gateway is killed with `kill -9`: half of them running, with
two recorded steps, half suspended and due by now. The next process is timed from the command to the
first start that it accepts, and further starts are timed, one after another, until every pending
operation has done its last step and ended. The same starts on an idle gateway stand beside.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks import stock
from benchmarks.databases import KINDS, databases
from benchmarks.load import percentile_ms
from benchmarks.machine import Watch, wait_until_quiet
from benchmarks.parts import Measured, Part, described_versions, progress, scratch, table
from benchmarks.probes import Probe, probe_in_turn, probe_until
from benchmarks.servers import gateway

SERVES_WITHIN_SECONDS = 3.0

_PAUSE_SECONDS = 0.01
_GIVES_UP_AFTER_SECONDS = 300.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What happened after a kill; times in seconds from the start of the next process."""

    pending: int
    first_start_at: float
    all_ended_at: float
    left: int  # not ended when waiting was given up
    lost: int  # ended otherwise than with their result, or gone
    idle_ms: tuple[float, float, float]  # start latency: p50, p99, most
    recovering_ms: tuple[float, float, float]
    starts: int
    peak_bytes: int
    other_cores: float


def measure(options: argparse.Namespace) -> Measured:
    """Fill a database, kill, start, watch."""
    pending = 2_000 if options.quick else options.pending
    with scratch() as folder, databases(options.recovery_database, folder) as made:
        progress(f"  {pending:,} operations")
        wait_until_quiet(0.0 if options.quick else 5.0)
        with gateway(folder, made.new(migrated=made.kind != "sqlite").url, name="idle") as idle:
            seconds = 1.0 if options.quick else 5.0
            asyncio.run(probe_in_turn([idle.base_url], 0.5, _PAUSE_SECONDS))
            (idle_latencies,) = asyncio.run(probe_in_turn([idle.base_url], seconds, _PAUSE_SECONDS))
        database = made.new(migrated=made.kind != "sqlite")
        held, sleeper = stock.make_templates(database, folder)
        half = pending // 2
        stock.add_running(database, held, range(half))
        stock.add_suspended(database, sleeper, range(half, pending), due_in_ms=-2 * pending)
        engine = database.engine()
        found = _recover(folder, database.url, engine, pending, idle_latencies)
        engine.dispose()
        versions = [made.version] if made.version else []
    return Measured(
        text=render(found, versions), missed=missed(found), details={"recovery": asdict(found)}
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument(
        "--pending", type=int, default=100_000, help="operations at the kill (100,000)"
    )
    parser.add_argument(
        "--recovery-database", choices=KINDS, default=KINDS[0], help="where they are (sqlite)"
    )


PART = Part("recovery", measure, add_options)


def missed(found: Recovery) -> list[str]:
    """Return what is not as required, in words."""
    lines = []
    if found.first_start_at >= SERVES_WITHIN_SECONDS:
        lines.append(
            f"the first start was accepted after {found.first_start_at:.1f} s, required is less "
            f"than {SERVES_WITHIN_SECONDS:g} s"
        )
    if found.left or found.lost:
        lines.append(f"{found.left} operations have not ended, {found.lost} without their result")
    return lines


def render(found: Recovery, versions: Sequence[str]) -> str:
    """Return the figures as Markdown."""
    verdict = "met" if found.first_start_at < SERVES_WITHIN_SECONDS else "MISSED"
    rate = found.pending / max(1e-6, found.all_ended_at - found.first_start_at)
    rows = [
        (
            "first start accepted, after the command",
            f"{found.first_start_at:.2f} s",
            f"less than {SERVES_WITHIN_SECONDS:g} s",
            verdict,
        ),
        (
            "all resumed and ended, after the command",
            f"{found.all_ended_at:.1f} s ({rate:,.0f}/s)",
            "every one",
            "met" if not found.left and not found.lost else "MISSED",
        ),
        ("start p50 / p99 / most, idle gateway", _shown(found.idle_ms), "-", "-"),
        ("start p50 / p99 / most, meanwhile", _shown(found.recovering_ms), "-", "-"),
        ("starts meanwhile, all accepted", f"{found.starts:,}", "-", "-"),
        ("most resident memory", f"{found.peak_bytes / 1e6:,.0f} MB", "-", "-"),
    ]
    return "\n\n".join(
        [
            described_versions(*versions),
            table((f"{found.pending:,} pending operations", "figure", "required", ""), rows),
            f"Beside the benchmark, others used {found.other_cores:.2f} cores.",
        ]
    )


def _recover(
    folder: Path, url: str, engine: sa.Engine, pending: int, idle_latencies: list[float]
) -> Recovery:
    watch = Watch()
    began = time.perf_counter()
    with gateway(folder, url) as server:
        asyncio.run(_start_once(server.base_url))
        first_start_at = time.perf_counter() - began
        peak_bytes = left = 0

        def wait_for_end() -> None:
            nonlocal peak_bytes, left
            deadline = began + _GIVES_UP_AFTER_SECONDS
            # The probes' own operations are open for a moment, too.
            while (left := stock.count_open(engine)) > 1 and time.perf_counter() < deadline:
                peak_bytes = max(peak_bytes, server.resident_bytes())
                time.sleep(_POLL_SECONDS)

        latencies = asyncio.run(probe_until(server.base_url, wait_for_end, _PAUSE_SECONDS))
        all_ended_at = time.perf_counter() - began
    left = stock.count_open(engine)
    started = len(latencies) + 1
    return Recovery(
        pending=pending,
        first_start_at=first_start_at,
        all_ended_at=all_ended_at,
        left=left,
        lost=pending + started - left - stock.count_succeeded(engine),
        idle_ms=_figures(idle_latencies),
        recovering_ms=_figures(latencies),
        starts=started,
        peak_bytes=peak_bytes,
        other_cores=watch.stop().other_cores,
    )


async def _start_once(base_url: str) -> None:
    probe = Probe(base_url)
    await probe.start()
    probe.close()


def _figures(latencies: list[float]) -> tuple[float, float, float]:
    p50, p99, most = (percentile_ms(latencies, percent) for percent in (50, 99, 100))
    return p50, p99, most


def _shown(figures: tuple[float, float, float]) -> str:
    return " / ".join(f"{figure:.1f}" for figure in figures) + " ms"


if __name__ == "__main__":
    sys.exit(PART.main())
