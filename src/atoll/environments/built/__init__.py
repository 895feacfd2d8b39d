"""Environments on the disk: directories, records and locks."""
