"""The tables of apps and their deployments. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, String, Table, Text

from atoll.server.database.tables import metadata

apps = Table(
    "apps",
    metadata,
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("app", String(63), primary_key=True),
    Column("deployment", String(36), nullable=False),  # the present one
    Column(
        "scaled", Text, nullable=False
    ),  # JSON: options of served functions that outlive deployments, by their names
    Column("changed", Double, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("app", String(63), nullable=False),
    Column("functions", Text, nullable=False),  # JSON, see `bodies.Function`
    Column("created", Double, nullable=False),
)
Index("ix_deployments_user", deployments.c.user, deployments.c.app)
