"""Fairness between users: shares of the machine, and the order in which requests that wait are served. Pure."""
