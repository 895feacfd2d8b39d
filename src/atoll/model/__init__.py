"""Frozen values that travel between the processes: what a call, an environment and a worker are."""
