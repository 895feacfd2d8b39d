"""Revisions of served functions, and the aliases that point to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "revisions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("function", sa.String(400), nullable=False),
        sa.Column("port", sa.BigInteger, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("auth", sa.String(16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_revisions_user", "revisions", ["user"])
    op.create_table(
        "aliases",
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("alias", sa.String(63), primary_key=True),
        sa.Column("revision", sa.String(36), sa.ForeignKey("revisions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("previous", sa.String(36), nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
    )
    op.create_index("ix_aliases_revision", "aliases", ["revision"])
