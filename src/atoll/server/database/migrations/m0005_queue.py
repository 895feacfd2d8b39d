"""Queued requests with their answers, and the webhooks that tell of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "queued",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("owner", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("alias", sa.String(63), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("submitted", sa.Double, nullable=False),
        sa.Column("deadline", sa.Double, nullable=False),
        sa.Column("no_retry", sa.Boolean, nullable=False),
        sa.Column("idempotency", sa.String(64), unique=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("body_bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("attempt", sa.String(36), nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("answer_bytes", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("error_type", sa.String(40), nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("logs", sa.Text, nullable=False),
    )
    op.create_index("ix_queued_owner", "queued", ["owner"])
    op.create_index("ix_queued_state", "queued", ["state", "submitted"])
    op.create_index("ix_queued_finished", "queued", ["finished"])
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next", sa.Double),
        sa.Column("delivered", sa.Double),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("ix_webhooks_user", "webhooks", ["user"])
    op.create_index("ix_webhooks_next", "webhooks", ["next"])
