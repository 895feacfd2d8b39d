"""Schedules of functions with their activations, and apps with their deployments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("revision", sa.String(36), sa.ForeignKey("revisions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("app", sa.String(63), nullable=False),
        sa.Column("cron", sa.String(200), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("overlap", sa.String(8), nullable=False),
        sa.Column("missed", sa.String(8), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("next_run", sa.Double, nullable=False),
    )
    op.create_index("ix_schedules_user", "schedules", ["user"])
    op.create_index("ix_schedules_revision", "schedules", ["revision"])
    op.create_table(
        "activations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("schedule", sa.String(36), sa.ForeignKey("schedules.id", ondelete="CASCADE"), nullable=False),
        sa.Column("revision", sa.String(36), nullable=False),
        sa.Column("due", sa.Double, nullable=False),
        sa.Column("made", sa.Double, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("ended", sa.Double, nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.UniqueConstraint("schedule", "due", name="uq_activations_schedule_due"),
    )
    op.create_index("ix_activations_state", "activations", ["state"])
    op.create_table(
        "apps",
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("app", sa.String(63), primary_key=True),
        sa.Column("deployment", sa.String(36), nullable=False),
        sa.Column("scaled", sa.Text, nullable=False),
        sa.Column("changed", sa.Double, nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("app", sa.String(63), nullable=False),
        sa.Column("functions", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_index("ix_deployments_user", "deployments", ["user", "app"])
