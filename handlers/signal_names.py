"""What a signal may be called: the same for those who send it and for the handler that waits."""

import unicodedata

RESERVED_NAMES = "nexus."
"""What the names begin with that are the gateway's own: completions of calls."""

MOST_CHARACTERS = 200


def fault_of_name(name: str) -> str | None:
    """Return what is wrong with a signal's name, in words for whoever gave it; None if nothing."""
    if fault := fault_of_text(name, "a signal's name"):
        return fault
    if "/" in name or "#" in name:  # no key of a journal may look like another's
        return "a signal's name has no '/' and no '#'"
    if name.startswith(RESERVED_NAMES):
        return f"names that begin with {RESERVED_NAMES!r} are reserved for the gateway"
    return None


def fault_of_text(text: str, what: str) -> str | None:
    """Return what is wrong with a name or an id, called `what`; None if nothing."""
    # Surrogates ("Cs") are what no database stores.
    if 1 <= len(text) <= MOST_CHARACTERS and not any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text
    ):
        return None
    return f"{what} has 1 to {MOST_CHARACTERS} characters, and no control characters"
