"""Environments: found by their key, or built once, complete or absent."""
