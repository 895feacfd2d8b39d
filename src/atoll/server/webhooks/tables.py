"""The table of webhooks. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, String, Table, Text

from atoll.server.database.tables import metadata

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(36), primary_key=True),  # of what is told: a queued request
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),  # who asked
    Column("url", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next", Double),  # when it is tried; none once it is over
    Column("delivered", Double),
    Column("error", Text, nullable=False),  # of the last attempt
)
Index("ix_webhooks_next", webhooks.c.next)
