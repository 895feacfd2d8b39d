"""The table of queued requests. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from atoll.server.database.tables import metadata

queued = Table(
    "queued",
    metadata,
    Column("id", String(36), primary_key=True),  # a UUID
    Column("owner", String(64), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("alias", String(63), nullable=False),  # of the endpoint, or a revision's id, as it was asked
    Column("caller", String(64), nullable=False),  # the id of the user who asked; empty for anybody
    Column("priority", Integer, nullable=False),  # 0 before 1
    Column("submitted", Double, nullable=False),
    Column("deadline", Double, nullable=False),  # it must have started by then; 0 for none
    Column("no_retry", Boolean, nullable=False),
    Column("idempotency", String(64), unique=True),  # digest of caller, endpoint and the key that was given
    Column("digest", String(64), nullable=False),  # of the body, where there is such a key
    Column("head", Text, nullable=False),  # JSON, see `heads.Head`; empty once it is over
    Column("body", LargeBinary),  # a small one; others are files
    Column("body_bytes", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),  # see `rows`
    Column("cancelled", Boolean, nullable=False),
    Column("url", Text, nullable=False),  # who; empty for nobody
    Column("attempt", String(36), nullable=False),  # the id of the last one
    Column("finished", Double),
    Column("status", Integer, nullable=False),  # of the answer; 0 before
    Column("headers", Text, nullable=False),  # JSON, of the answer
    Column("answer", LargeBinary),  # as `body`
    Column("answer_bytes", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    Column("error_type", String(40), nullable=False),
    Column("seconds", Double, nullable=False),  # that the function took
    Column("logs", Text, nullable=False),  # JSON
)
Index("ix_queued_owner_submitted", queued.c.owner, queued.c.submitted)
Index("ix_queued_state", queued.c.state, queued.c.submitted)
Index("ix_queued_finished", queued.c.finished)
