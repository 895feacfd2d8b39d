"""The tables of nodes and of the tokens that let machines join. Moments are seconds since the epoch."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, Integer, LargeBinary, String, Table, Text

from atoll.server.database.tables import metadata

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(64), primary_key=True),  # opaque; a machine that joins again under its name has a new one
    Column("name", String(63), nullable=False, unique=True),
    Column("digest", LargeBinary(32), nullable=False),  # of its secret
    Column("state", String(16), nullable=False),
    Column("labels", Text, nullable=False),  # JSON
    Column("facts", Text, nullable=False),  # JSON, as the machine says them
    Column("created", Double, nullable=False),  # of the name
    Column("joined", Double, nullable=False),  # of the credentials
    Column("seen", Double),  # the last word; at most a minute late while its link is open
)

node_tokens = Table(
    "node_tokens",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("uses", Integer, nullable=False),  # left
    Column("labels", Text, nullable=False),  # JSON: of each node that joins by it
    Column("maker", String(64), nullable=False),  # the user's id
    Column("revoked", Boolean, nullable=False),
)
