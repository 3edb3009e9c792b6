"""Operation tokens: in the order of their making, and not to be guessed."""

import base64
import os
import time


def new_token() -> str:
    """Return a token: 48 bits of time in front, for locality on the disk, and 128 random bits."""
    moment = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    # The extended hexadecimal alphabet sorts as the bytes do.
    return base64.b32hexencode(moment + os.urandom(16)).rstrip(b"=").decode().lower()
