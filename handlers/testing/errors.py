"""What a test can meet beside the operation's own errors."""

from nexus_spec import NexusError


class Stuck(NexusError):
    """An operation cannot go on by itself; the message says what it waits for, or why it paused.

    It waits for a signal that the test did not send, or it was paused, or one of its steps takes
    longer than the gateway's `patience`.
    """


class NeverReached(NexusError):
    """An operation did not come to where the test wanted it to: the step was never recorded."""


class JournalsDiverge(NexusError, AssertionError):
    """Stored operations do not replay on this code; the message names each of them and why."""
