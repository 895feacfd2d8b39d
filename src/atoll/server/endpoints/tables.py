"""The tables of revisions and aliases. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, String, Table, Text

from atoll.server.database.tables import metadata

revisions = Table(
    "revisions",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("function", String(400), nullable=False),
    Column(
        "port", BigInteger, nullable=False
    ),  # the function's server listens there; 0 for a function that is no server
    Column("options", Text, nullable=False),  # JSON, see `bodies.Options`
    Column("auth", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),  # of its file
    Column("created", Double, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("revision", String(36), ForeignKey("revisions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("previous", String(36), nullable=False),  # the revision before; empty for none
    Column("changed", Double, nullable=False),
)
