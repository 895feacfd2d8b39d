"""Queued requests of an owner in the order in which they came: the page lists them."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Let an index have the order, too."""
    op.create_index("ix_queued_owner_submitted", "queued", ["owner", "submitted"])
    op.drop_index("ix_queued_owner", "queued")
