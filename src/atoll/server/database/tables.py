"""The tables of users, keys, sessions of the page, and the audit. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", String(64), primary_key=True),  # opaque, never used again, and the name of the volume's directory
    Column("name", String(64), nullable=False, unique=True),
    Column("operator", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("volume_bytes", BigInteger, nullable=False),  # quotas: 0 for none
    Column("volume_files", BigInteger, nullable=False),
    Column("workers", Integer, nullable=False),
)

identities = Table(
    "identities",
    metadata,
    Column("issuer", String(512), primary_key=True),
    Column("subject", String(255), primary_key=True),  # OpenID Connect bounds it so
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("created", Double, nullable=False),
    Column("used", Double),  # at most a minute late
    Column("expires", Double),
)

page_sessions = Table(
    "page_sessions",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("user", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("key", String(64), ForeignKey("keys.id", ondelete="CASCADE"), index=True),  # ends with the key of its login
    Column("scope", String(16), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(64), nullable=False),  # as it was then: users go, and names may be given again
    Column("act", String(64), nullable=False),
    Column("target", String(256), nullable=False),
    Column("details", Text, nullable=False),  # JSON
    sqlite_autoincrement=True,
)
Index("ix_audit_at", audit.c.at)

marks = Table(
    "marks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Counters that rise with a change, so that who keeps a copy notices: `keys` with each key or user that ends."""
