"""Outbound networks: packets from a sandbox to the outside, and no further."""
