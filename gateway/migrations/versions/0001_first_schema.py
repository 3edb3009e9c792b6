"""The first schema: operations, journals, the outbox and API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "operation",
        sa.Column("token", sa.String, primary_key=True),
        sa.Column("handler_token", sa.String),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("service", sa.String, nullable=False),
        sa.Column("operation", sa.String, nullable=False),
        sa.Column("caller", sa.String, nullable=False, server_default=""),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("input_hash", sa.LargeBinary, nullable=False),
        sa.Column("input", sa.LargeBinary, nullable=False),
        sa.Column("content_headers", sa.String, nullable=False),
        sa.Column("headers", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("pause_reason", sa.String),
        sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("run_at", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("cancel_requested_at", sa.BigInteger),
        sa.Column("deadline_at", sa.BigInteger),
        sa.Column("links", sa.String, nullable=False, server_default="[]"),
        sa.Column("handler_links", sa.String, nullable=False, server_default="[]"),
        sa.Column("trace_context", sa.String),
        sa.Column("output", sa.LargeBinary),
        sa.Column("output_headers", sa.String),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("error_detail", sa.String),
        sa.Column("progress", sa.String),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.UniqueConstraint("endpoint", "service", "operation", "caller", "request_id"),
    )
    is_open = sa.text("state IN ('ready', 'running', 'paused')")
    op.create_index(
        "operation_open", "operation", ["state"], sqlite_where=is_open, postgresql_where=is_open
    )
    is_known = sa.text("handler_token IS NOT NULL")
    op.create_index(
        "operation_handler_token",
        "operation",
        ["handler_token"],
        sqlite_where=is_known,
        postgresql_where=is_known,
    )
    op.create_table(
        "journal",
        sa.Column("token", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("args_hash", sa.LargeBinary),
        sa.Column("output", sa.LargeBinary),
        sa.Column("error", sa.String),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="1"),
        sa.Column("wake_at", sa.BigInteger),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "callback",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("registration_hash", sa.LargeBinary, nullable=False),
        sa.Column("destination", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("headers", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("outcome_unknown", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("deadline_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.UniqueConstraint("token", "slot"),
    )
    is_due = sa.text("state = 'due'")
    op.create_index(
        "callback_due", "callback", ["next_at"], sqlite_where=is_due, postgresql_where=is_due
    )
    is_undelivered = sa.text("state IN ('due', 'in_flight', 'failed')")
    op.create_index(
        "callback_undelivered",
        "callback",
        ["state"],
        sqlite_where=is_undelivered,
        postgresql_where=is_undelivered,
    )
    op.create_table(
        "delivery_attempt",
        sa.Column("callback_id", sa.BigInteger, primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.String),
        sa.Column("address", sa.String),
        sa.Column("response_excerpt", sa.String),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )


def downgrade() -> None:
    """Refuse: there is nothing before the first schema."""
    raise RuntimeError("there is no schema before 0001")
