"""Brings a database's schema up to the code's, or says why it cannot."""

from pathlib import Path

import alembic.command
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from callbacks.database import DatabaseError
from callbacks.database.sqlite import prepare_file

_SCRIPTS = Path(__file__).with_name("migrations")


def migrate(path: Path) -> str:
    """Apply the migrations that a SQLite file lacks, and return its schema version.

    Raises:
        DatabaseError: The file is of a newer version of the gateway, or cannot be migrated.
    """
    try:
        prepare_file(path)
    except OSError as error:
        raise DatabaseError(f"cannot open the SQLite database {path}: {error.strerror}") from error
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    assert head is not None
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current == head:
                return head
            known = {script.revision for script in scripts.walk_revisions()}
            if current is not None and current not in known:
                raise DatabaseError(
                    f"{path} has schema version {current}, which is newer than this gateway "
                    f"({head}); install the newer nexus-rpc-gateway that wrote it"
                )
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            connection.commit()
    except sa.exc.SQLAlchemyError as error:
        # SQLAlchemy's own text has the statement and links to its manual.
        said = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise DatabaseError(f"cannot open the SQLite database {path}: {said}") from error
    finally:
        engine.dispose()
    return head
