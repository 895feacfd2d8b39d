"""Limits of memory, CPU and processes for one worker."""
