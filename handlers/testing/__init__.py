"""Tests for durable operations, without waiting and without mocks: see `TestGateway`."""

from handlers.testing.clock import FakeClock
from handlers.testing.errors import JournalsDiverge, NeverReached, Stuck
from handlers.testing.gateway import TestGateway
from handlers.testing.journals import JournalCheck, assert_journals_replay, check_journals
from handlers.testing.run import Recorded, Run

__all__ = [
    "FakeClock",
    "JournalCheck",
    "JournalsDiverge",
    "NeverReached",
    "Recorded",
    "Run",
    "Stuck",
    "TestGateway",
    "assert_journals_replay",
    "check_journals",
]
