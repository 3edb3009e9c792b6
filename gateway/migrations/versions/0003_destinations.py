"""Destinations with breakers, and dead letters that can be found and replayed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add destinations; let every due delivery be found through its own."""
    op.add_column("callback", sa.Column("retries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("callback", sa.Column("reason", sa.String))
    op.execute("UPDATE callback SET retries = attempt WHERE state IN ('due', 'in_flight')")
    op.drop_index("callback_due", "callback")
    op.drop_index("callback_undelivered", "callback")
    op.create_table(
        "destination",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("openings", sa.Integer, nullable=False, server_default="0"),
        sa.Column("open_until", sa.BigInteger),
        sa.Column("probe_until", sa.BigInteger),
        sa.Column("not_before", sa.BigInteger),
        sa.Column("disabled_at", sa.BigInteger),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
    )
    for name, table, columns, where in (
        ("callback_due", "callback", ["destination", "next_at"], "state = 'due'"),
        ("callback_aging", "callback", ["destination", "deadline_at"], "state = 'due'"),
        ("callback_dead", "callback", ["id"], "state = 'failed'"),
        ("callback_dead_of_destination", "callback", ["destination", "id"], "state = 'failed'"),
        ("destination_wake", "destination", ["wake_at"], "wake_at IS NOT NULL"),
        ("destination_open", "destination", ["name"], "open_until IS NOT NULL"),
    ):
        op.create_index(
            name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
    op.execute(
        "INSERT INTO destination (name, wake_at, changed_at) "
        "SELECT destination, min(next_at), min(next_at) FROM callback "
        "WHERE state = 'due' GROUP BY destination"
    )


def downgrade() -> None:
    """Refuse: disabled destinations would be called again."""
    raise RuntimeError("schema 0003 cannot be taken back without calling disabled destinations")
