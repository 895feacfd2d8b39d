"""Snapshots of a volume: make, compare, restore."""
