"""The completions that are delivered: what is sent, and what is read of it where it arrives."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

BODY_BYTES = 150
CALLER_HEADERS = {"Token": "3f1c8a6e-caller"}


@dataclass(frozen=True)
class Arrival:
    """One completion as it arrived; times by `time.perf_counter`, one clock for all processes."""

    number: int
    frozen_at: float
    at: float


def token_of(number: int) -> str:
    """Return the token of a numbered operation."""
    return f"operation-{number:09}"


def headers_of(number: int) -> list[tuple[str, str]]:
    """Return what the gateway sends with a result, but for the caller's own headers."""
    return [
        ("Nexus-Operation-State", "succeeded"),
        ("Nexus-Operation-Token", token_of(number)),
        ("Nexus-Operation-Start-Time", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("Nexus-Operation-Close-Time", "2026-01-01T00:00:01.000Z"),
        ("Nexus-Link", '<temporal:///namespaces/n/workflows/w/r/history>; type="bench"'),
        ("Content-Type", "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ]


def all_headers_of(number: int) -> list[tuple[str, str]]:
    """Return all that a completion carries."""
    return [*CALLER_HEADERS.items(), *headers_of(number)]


def body_of(number: int, frozen_at: float = 0.0) -> bytes:
    """Return a result that says which one it is, and when it was frozen."""
    body = f'{{"number":{number},"frozen_at":{frozen_at:.6f},"pad":"'
    return f'{body}{"x" * (BODY_BYTES - len(body) - 2)}"}}'.encode()


def read_body(body: bytes) -> tuple[int, float]:
    """Return what a result says of itself."""
    value = json.loads(body)
    return int(value["number"]), float(value["frozen_at"])


def astray(arrivals: Iterable[Arrival], expected: Iterable[int]) -> tuple[int, int]:
    """Return how many of the expected completions are lost, and how many arrived once too often."""
    counts = Counter(arrival.number for arrival in arrivals)
    wanted = set(expected)
    lost = len(wanted - counts.keys())
    doubled = sum(count - 1 for number, count in counts.items() if number in wanted)
    return lost, doubled
