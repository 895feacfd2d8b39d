"""Sums of machine time, and how far the node's records are in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "usage",
        sa.Column("user", sa.String(64), primary_key=True),
        sa.Column("function", sa.String(256), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("wall_seconds", sa.Double, nullable=False),
        sa.Column("cpu_seconds", sa.Double, nullable=False),
        sa.Column("memory_byte_seconds", sa.Double, nullable=False),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
    )
    op.create_index("ix_usage_day", "usage", ["day"])
    op.create_table(
        "usage_cursors",
        sa.Column("generation", sa.String(32), primary_key=True),
        sa.Column("counted", sa.BigInteger, nullable=False),
    )
