"""Sizes beyond which a value is refused; those that a Temporal server enforces as well.

All are bytes on the wire except `LINKS`, which counts.
"""

from __future__ import annotations

from typing import Final

NAME_BYTES: Final = 1000
"""A service or an operation name, as UTF-8, before percent-encoding."""

TOKEN_BYTES: Final = 4096
"""An operation token."""

USER_HEADER_BYTES: Final = 8192
"""All headers of a request that the protocol does not define, names and values together."""

CALLBACK_URL_BYTES: Final = 1000
"""A callback URL, after the query parameter was decoded."""

CALLBACK_HEADER_BYTES: Final = 8192
"""All callback headers of a request, prefix stripped, names and values together."""

LINKS: Final = 10
"""Links on one message."""

LINK_BYTES: Final = 4000
"""One link: its URL and its type."""

PAYLOAD_BYTES: Final = 2 * 1024 * 1024
"""An input or a result."""
