"""Notifications as they go through PostgreSQL: all on one channel of it."""

from collections.abc import Sequence

CHANNEL = "nexus_gateway"


def message(channel: str, payload: str) -> str:
    """Return what is sent through PostgreSQL for a notification.

    Raises:
        ValueError: It has a character that PostgreSQL's texts cannot have.
    """
    if "\0" in channel or "\0" in payload:
        raise ValueError("a notification cannot have a NUL character")
    return f"{channel} {payload}"


def read_message(message: str) -> tuple[str, str]:
    """Return channel and payload of a message."""
    channel, _, payload = message.partition(" ")
    return channel, payload


def commit_with(messages: Sequence[str]) -> str:
    """Return the statements that send messages and commit: one round trip for both."""
    if not messages:
        return "COMMIT"
    texts = ", ".join(_quoted(message) for message in messages)
    # Several statements in one query can have no parameters.
    return f"SELECT pg_notify('{CHANNEL}', t) FROM unnest(ARRAY[{texts}]) AS t; COMMIT"  # noqa: S608  # quoted


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
