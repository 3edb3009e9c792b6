"""Reading the `--database` setting."""

import re
from pathlib import Path
from urllib.parse import unquote

from callbacks.database.errors import InvalidDatabaseUrl

_SQLITE = "sqlite:///"


def sqlite_path(url: str) -> Path:
    """Return the file that a `sqlite:///relative` or `sqlite:////absolute` URL names.

    Raises:
        InvalidDatabaseUrl: Another scheme, no path, or an in-memory database, which would lose
            every operation with the process.
    """
    if url.startswith(("postgresql:", "postgres:")):
        raise InvalidDatabaseUrl(
            "PostgreSQL is not supported by this version; use --database sqlite:///PATH"
        )
    if not url.startswith(_SQLITE):
        shown = re.sub(r"//[^/]*@", "//...@", url)  # there may be a password in it
        raise InvalidDatabaseUrl(f"{shown!r} is not a database URL; use sqlite:///data/nexus.db")
    path = unquote(url.removeprefix(_SQLITE).partition("?")[0])
    if not path or path == ":memory:":
        raise InvalidDatabaseUrl(
            "an in-memory database would lose every operation; use sqlite:///data/nexus.db"
        )
    return Path(path)
