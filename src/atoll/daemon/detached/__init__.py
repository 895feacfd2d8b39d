"""Detached calls in the daemon: accepting them, the keeper that makes them, and clients' requests about them."""
