"""Frozen values that travel between the processes: specs of calls, environments and workers."""
