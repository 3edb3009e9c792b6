"""What the commands share that work on the database itself, beside a gateway that may serve it."""

from datetime import UTC, datetime

from gateway.commands.options import Config
from nexus_spec import NexusError


class NoDatabase(NexusError):
    """There is no such database, and the command would find nothing in a new one."""


def database_url(database: str | None, config: Config) -> str:
    """Return the database that an option, the environment, a file or the default names."""
    from gateway.settings import read_settings

    return read_settings({"database": database}, config).database


def existing_database(database: str | None, config: Config) -> str:
    """Return the same, where it is there already: a wrong name must not make an empty one.

    Raises:
        NoDatabase: It is a SQLite file that does not exist.
    """
    from callbacks.database import is_postgres, sqlite_path

    url = database_url(database, config)
    if not is_postgres(url) and not sqlite_path(url).is_file():
        raise NoDatabase(
            f"there is no database {sqlite_path(url).resolve()}; name it with --database"
        )
    return url


def shown_moment(ms: int | None) -> str:
    """Return a time in milliseconds since 1970 as people read it; nothing where there is none."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
