"""Requests for environments, read into values: pure."""
