"""The tables of schedules and their activations. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, String, Table, Text, UniqueConstraint

from atoll.server.database.tables import metadata
from atoll.server.endpoints import tables as _endpoints  # noqa: F401 - schedules name revisions

schedules = Table(
    "schedules",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("revision", String(36), ForeignKey("revisions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("app", String(63), nullable=False),  # the app that it is a part of; empty for none
    Column("cron", String(200), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("overlap", String(8), nullable=False),
    Column("missed", String(8), nullable=False),
    Column("state", String(10), nullable=False),  # active, paused or cancelled
    Column("created", Double, nullable=False),
    Column("next_run", Double, nullable=False),  # 0 for none
)

activations = Table(
    "activations",
    metadata,
    Column("id", String(36), primary_key=True),  # of its spool and its detached call, too
    Column("schedule", String(36), ForeignKey("schedules.id", ondelete="CASCADE"), nullable=False),
    Column("revision", String(36), nullable=False),  # the function at that time
    Column("due", Double, nullable=False),
    Column("made", Double, nullable=False),
    Column("state", String(10), nullable=False),  # due, queued, sent, finished or skipped
    Column("started", Double, nullable=False),  # 0 for not yet
    Column("ended", Double, nullable=False),  # as above
    Column("outcome", String(20), nullable=False),  # of the call; empty for none
    Column("reason", Text, nullable=False),  # of a run that was skipped or failed; empty for none
    UniqueConstraint("schedule", "due", name="uq_activations_schedule_due"),
)
Index("ix_activations_state", activations.c.state)
