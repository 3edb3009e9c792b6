"""Owners and leases, signals, signing keys, suspension and retention."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what several processes, sleeping operations and outgoing calls need."""
    op.add_column("operation", sa.Column("owner", sa.String))
    op.add_column(
        "operation", sa.Column("wake_seq", sa.Integer, nullable=False, server_default="0")
    )
    op.add_column("operation", sa.Column("losses", sa.Integer, nullable=False, server_default="0"))
    op.add_column("operation", sa.Column("watched", sa.Integer, nullable=False, server_default="0"))
    op.add_column("operation", sa.Column("expires_at", sa.BigInteger))
    op.add_column("operation", sa.Column("retrying", sa.String))
    op.add_column("journal", sa.Column("ref", sa.String))
    op.add_column("callback", sa.Column("owner", sa.String))
    # What ran when the last process stopped belongs to nobody who is alive.
    op.execute("UPDATE operation SET owner = '' WHERE state = 'running' AND handler_token IS NULL")
    op.execute("UPDATE operation SET run_at = created_at WHERE state = 'ready' AND run_at IS NULL")
    op.execute("UPDATE callback SET owner = '' WHERE state = 'in_flight'")
    for name, table, column, where in (
        ("operation_due", "operation", "run_at", "state = 'ready'"),
        ("operation_owned", "operation", "owner", "state = 'running' AND owner IS NOT NULL"),
        (
            "operation_deadline",
            "operation",
            "deadline_at",
            "closed_at IS NULL AND deadline_at IS NOT NULL",
        ),
        ("operation_expiry", "operation", "expires_at", "expires_at IS NOT NULL"),
        ("callback_owned", "callback", "owner", "state = 'in_flight'"),
    ):
        op.create_index(
            name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
    op.create_table(
        "replica",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "signal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("dedupe_id", sa.String, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("token", "name", "dedupe_id"),
    )
    op.create_table(
        "signing_key",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("retired_at", sa.BigInteger),
    )


def downgrade() -> None:
    """Refuse: sleeping operations and signals would be lost."""
    raise RuntimeError("schema 0002 cannot be taken back without losing operations")
