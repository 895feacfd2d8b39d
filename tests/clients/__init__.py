"""The published clients of the original system, unmodified, against a server."""
