"""Secrets of users, encrypted below the state directory, and variables of their calls."""
