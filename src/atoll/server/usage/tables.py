"""The tables of accounting. They outlive users and records: sums are what remains of both."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, String, Table

from atoll.server.database.tables import metadata

usage = Table(
    "usage",
    metadata,
    Column("user", String(64), primary_key=True),  # no foreign key: sums of removed users stay
    Column("function", String(256), primary_key=True),
    Column("day", String(10), primary_key=True),  # of the call's making, UTC: `2026-11-29`
    Column("calls", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("wall_seconds", Double, nullable=False),
    Column("cpu_seconds", Double, nullable=False),
    Column("memory_byte_seconds", Double, nullable=False),  # each call's peak, for as long as it ran
    Column("gpu_seconds", Double, nullable=False),
)
Index("ix_usage_day", usage.c.day)

usage_cursors = Table(
    "usage_cursors",
    metadata,
    Column("generation", String(32), primary_key=True),  # of the node's file of records, which may be made anew
    Column("counted", BigInteger, nullable=False),  # the last record that the sums have
)
