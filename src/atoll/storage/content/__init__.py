"""Contents of files: digests, deltas, compression, copies."""
