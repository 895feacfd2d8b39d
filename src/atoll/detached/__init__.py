"""Detached calls on the disk: rows in SQLite, and files with arguments, outputs and results."""
