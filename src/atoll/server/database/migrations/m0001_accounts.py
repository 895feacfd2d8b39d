"""Users, their identities at issuers, keys, sessions of the page, the audit, and marks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _user(*, index: bool = True) -> sa.Column[str]:
    return sa.Column("user", sa.String(64), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=index)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "users",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("operator", sa.Boolean, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("volume_bytes", sa.BigInteger, nullable=False),
        sa.Column("volume_files", sa.BigInteger, nullable=False),
        sa.Column("workers", sa.Integer, nullable=False),
    )
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(512), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        _user(),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), primary_key=True),
        _user(),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("used", sa.Double),
        sa.Column("expires", sa.Double),
    )
    op.create_table(
        "page_sessions",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        _user(),
        sa.Column("key", sa.String(64), sa.ForeignKey("keys.id", ondelete="CASCADE"), index=True),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(64), nullable=False),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("target", sa.String(256), nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "marks",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
