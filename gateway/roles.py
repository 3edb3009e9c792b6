"""What a principal may do."""

from enum import StrEnum


class Role(StrEnum):
    """The role of an API key."""

    CALL = "call"  # start, cancel and ask for its own operations
    OPERATE = "operate"  # everything
