"""`atoll data`: files on the volume, copies, syncs and snapshots."""
